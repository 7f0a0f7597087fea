"""The command `bench`; `register(app)` adds it to the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson, Device
from hf_arch.cli.output import only_results_on_stdout, print_json, print_status
from hf_arch.cli.panels import RESULTS
from hf_arch.cli.plugins import PluginCode, load_override_plugins
from hf_arch.core.errors import ConfigError

Architectures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[ARCH]...",
        help="Names, recipes, runs or saved models; `key=value` changes configs.",
        autocompletion=completion.targets,
    ),
]
Lengths = Annotated[str, typer.Option(help="Context lengths in tokens, separated by commas.")]
BatchSize = Annotated[int, typer.Option(help="Sequences at a time.")]
Dtype = Annotated[str, typer.Option(help="`fp32`, `bf16` or `fp16`.")]
Against = Annotated[
    str | None,
    typer.Option(metavar="transformers", help="Also measure transformers' model of the same sizes and weights."),
]
Repeats = Annotated[int, typer.Option(help="Rounds; medians are reported.")]
Roofline = Annotated[
    bool, typer.Option("--roofline", help="Also measure the machine's limits, and each row's share of them.")
]
OutputJson = Annotated[
    str | None,
    typer.Option("--output-json", "--output", metavar="FILE", help="Write all numbers to this file as JSON."),
]
Plot = Annotated[str | None, typer.Option(metavar="FILE", help="Draw speed and memory into this png, svg or pdf.")]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("bench", rich_help_panel=RESULTS)(bench_command)


def bench_command(
    architectures: Architectures = None,
    seq_len: Lengths = "256",
    batch_size: BatchSize = 1,
    dtype: Dtype = "fp32",
    device: Device = None,
    against: Against = None,
    repeats: Repeats = 5,
    roofline: Roofline = False,
    output_json: OutputJson = None,
    plot: Plot = None,
    plugin_code: PluginCode = "run",
    as_json: AsJson = False,
) -> int:
    """Measure training, prefill and decode speed, peak memory and cache, side by side in one run.

    - `hf-arch bench llama gla mamba --seq-len 256,1024`
    - `hf-arch bench gpt2 llama hidden_size=256 num_attention_heads=8 --against transformers --json`
    """
    with only_results_on_stdout():
        from hf_arch.core.heap import keep_memory
        from hf_arch.core.threads import prepare_threads

        prepare_threads()
        keep_memory()
        from hf_arch.core.files import to_jsonable, write_json
        from hf_arch.core.quiet import quiet_libraries
        from hf_arch.evaluation.bench import BenchOptions, run_bench
        from hf_arch.evaluation.model_scores import split_names
        from hf_arch.experiments.planning.bench_models import find_candidates
        from hf_arch.report.bench_report import check_plot_path, plot_bench, print_bench

        lengths = tuple(_length(text) for text in split_names(seq_len))
        options = BenchOptions(lengths, batch_size, dtype, device, repeats, roofline=roofline)
        if plot is not None:
            check_plot_path(plot)
        with quiet_libraries():
            load_override_plugins(text for text in architectures or [] if "=" in text)
            found = find_candidates(architectures or [], tokens=options.longest, against=against, report=print_status)
            document = run_bench(found, options, print_status)
        if output_json is not None:
            write_json(output_json, document)
        if plot is not None:
            plot_bench(document, plot)
    if as_json:
        print_json(to_jsonable(document))
    else:
        print_bench(document)
    return 0


def _length(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seq-len: {text!r} is not a whole number; e.g. --seq-len 256,1024") from None
