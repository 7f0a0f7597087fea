"""The commands `push`, `export`, `convert` and `quantize`, entered into the command line by `register`."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.output import only_results_on_stdout
from hf_arch.cli.panels import SHARE
from hf_arch.cli.plugins import PluginCode

Path_ = Annotated[
    str,
    typer.Argument(metavar="PATH", help="A run folder, a saved model, or a Hub id.", autocompletion=completion.runs),
]
License = Annotated[str | None, typer.Option(help="Licence of the weights by the Hub's name, e.g. `apache-2.0`.")]


def register(app: typer.Typer) -> None:
    """Enter the commands into `app`."""
    app.command(rich_help_panel=SHARE)(push)
    app.command(rich_help_panel=SHARE)(export)
    app.command(rich_help_panel=SHARE)(convert)
    app.command(rich_help_panel=SHARE)(quantize)


def push(
    path: Path_,
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="`user/name` on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the files that would be pushed.")] = False,
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Also push the checkpoints, as branches.")] = False,
    no_code: Annotated[bool, typer.Option("--no-code", help="Leave out the code that loads it anywhere.")] = False,
    license: License = None,
    plugin_code: PluginCode = "run",
) -> int:
    """Share a model on the Hub: weights, tokenizer, code, and a card with what was measured.

    A second push sends only what has changed.

    - `hf-arch push results/quickstart/gla_1a2b3c4d5e alice/gla --dry-run`
    """
    with only_results_on_stdout():
        from hf_arch.cli.hub_commands import push_command

    return push_command(
        path,
        repo_id,
        private=private,
        dry_run=dry_run,
        checkpoints=checkpoints,
        code=not no_code,
        license=license,
    )


def export(
    path: Path_,
    format: Annotated[
        str,
        typer.Option(
            **completion.choices("hub|gguf|torch"), help="A repository with its code, a GGUF file, or a torch program."
        ),
    ],
    output: Annotated[
        str | None, typer.Option(metavar="DST", help="Default: in PATH, `hub/`, `model.gguf` or `model.pt2`.")
    ] = None,
    license: License = None,
    plugin_code: PluginCode = "run",
) -> int:
    """Write a model for others to load without this package.

    - `hf-arch export results/first --format hub`
    - `hf-arch export results/llama --format gguf --output l.gguf`
    """
    with only_results_on_stdout():
        from hf_arch.cli.hub_commands import export_command

    return export_command(path, format, output, license)


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder of config.json and safetensors, or a Hub id.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new or empty folder.")],
    to: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Model type to convert to, e.g. `llama`; default: ours.")
    ] = None,
    plugin_code: PluginCode = "run",
) -> int:
    """Convert a checkpoint of another library to one of our models, or back, and check the result against its source.

    - `hf-arch convert gpt2_folder ours`
    - `hf-arch convert results/first theirs --to llama`
    """
    with only_results_on_stdout():
        from hf_arch.cli.hub_commands import convert_command

    return convert_command(source, destination, to)


def quantize(
    path: Path_,
    destination: Annotated[str, typer.Argument(metavar="DST", help="A new or empty folder.")],
    method: Annotated[
        str, typer.Option(**completion.choices("torchao-int8|torchao-int8-dynamic|gptq"), help="Quantisation method.")
    ],
    text: Annotated[str | None, typer.Option(metavar="FILE", help="Text to measure the perplexity on.")] = None,
    plugin_code: PluginCode = "run",
) -> int:
    """Quantise a model's matrices; print the sizes and the perplexity before and after.

    - `hf-arch quantize results/first small --method torchao-int8 --text held_out.txt`
    """
    with only_results_on_stdout():
        from hf_arch.cli.hub_commands import quantize_command

    return quantize_command(path, destination, method, text)
