"""The command `eval`; `register(app)` adds it to the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson, Device, SavedDtype
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.cli.panels import RESULTS
from hf_arch.cli.plugins import PluginCode

ModelPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A run, a saved model, a Hub id, or a folder of finished runs.",
        autocompletion=completion.runs,
    ),
]
Tasks = Annotated[str, typer.Option(help="Tasks of lm_eval, `comprehensive` or `perplexity`, separated by commas.")]
BatchSize = Annotated[int, typer.Option(help="Rows at a time; scores do not depend on it.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N rows of each task.")]
OutputJson = Annotated[
    str | None, typer.Option("--output-json", "--output", metavar="FILE", help="Write the scores to this file as JSON.")
]
IncludePath = Annotated[str | None, typer.Option(metavar="DIR", help="A folder of your own task files.")]
Rows = Annotated[
    str,
    typer.Option(
        **completion.choices("auto|hub|local"),
        help="Where rows come from; `auto`: this machine where it has them, else the Hub.",
    ),
]
NumFewshot = Annotated[
    int | None, typer.Option(help="Solved examples before each row; default: the task's own number.")
]
AverageLast = Annotated[
    int | None,
    typer.Option(help="Average the scores of a run's last N checkpoints instead of scoring its final weights."),
]
Text = Annotated[
    str | None, typer.Option(metavar="FILE", help="Text that `perplexity` scores; default: the run's held-out text.")
]
Stride = Annotated[
    int | None, typer.Option(help="Tokens between the windows of `perplexity`; default: a whole window.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be scored, with hours on this device, memory and disk.")
]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("eval", rich_help_panel=RESULTS)(eval_command)


def eval_command(
    path: ModelPath,
    tasks: Tasks,
    batch_size: BatchSize = 8,
    dtype: SavedDtype = "auto",
    device: Device = None,
    limit: Limit = None,
    output_json: OutputJson = None,
    include_path: IncludePath = None,
    rows: Rows = "auto",
    num_fewshot: NumFewshot = None,
    average_last: AverageLast = None,
    text: Text = None,
    stride: Stride = None,
    plugin_code: PluginCode = "run",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Score a model on benchmarks, or every finished run in a folder.

    - `hf-arch eval results/quickstart/gla_1a2b3c4d5e --tasks perplexity,sentence_completion`
    - `hf-arch eval results/quickstart --tasks comprehensive,hellaswag --limit 200 --output-json scores.json`
    - `hf-arch eval results/quickstart --tasks hellaswag --dry-run`
    """
    with only_results_on_stdout():
        from hf_arch.core.files import to_jsonable, write_json
        from hf_arch.core.quiet import quiet_libraries
        from hf_arch.evaluation.forecast import forecast_eval
        from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path, print_scores, split_names
        from hf_arch.evaluation.text_loss import TextOptions
        from hf_arch.report.eval_preview import print_eval_preview

        options = EvalOptions(
            tasks=split_names(tasks),
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            limit=limit,
            include_path=include_path,
            rows=rows,
            num_fewshot=num_fewshot,
            average_last=average_last,
            text=TextOptions(file=text, stride=stride, limit=limit, batch_size=batch_size),
        )
        with quiet_libraries():
            document = forecast_eval(path, options) if dry_run else evaluate_path(path, options)
    if dry_run and not as_json:
        print_eval_preview(document)
        return 0
    if output_json is not None and not dry_run:
        write_json(output_json, document)
    if as_json:
        print_json(to_jsonable(document))
    else:
        print_scores(document)
    return 0
