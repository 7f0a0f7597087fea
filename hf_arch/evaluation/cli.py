"""The commands `eval` and `bench`; `register(app)` adds them to the command line."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands of this package to `app`."""
    app.command("eval")(eval_command)


def eval_command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A run, a saved model, a Hub id, or a folder of finished runs.")
    ],
    tasks: Annotated[
        str, typer.Option(help="Names of lm_eval's tasks, `comprehensive`, `perplexity`; several with commas.")
    ],
    batch_size: Annotated[int, typer.Option(help="Rows at a time; scores do not depend on it.")] = 8,
    dtype: Annotated[str, typer.Option(help="Of the weights: `fp32`, `bf16`, `fp16`; `auto` is as saved.")] = "auto",
    device: Annotated[str | None, typer.Option(help="`cpu`, `cuda`, ...; by default the GPU, if there is one.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows of each task.")] = None,
    output_json: Annotated[str | None, typer.Option(metavar="FILE", help="Write the scores as JSON.")] = None,
    include_path: Annotated[str | None, typer.Option(metavar="DIR", help="A folder of your own task files.")] = None,
    rows: Annotated[
        str, typer.Option(metavar="auto|hub|local", help="Where rows come from; `auto`: from here where they are here.")
    ] = "auto",
    text: Annotated[
        str | None, typer.Option(metavar="FILE", help="What `perplexity` scores; by default held-out text of the run.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from window to window of `perplexity`; by default a whole window.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> int:
    """Score a model on benchmarks, or every finished run in a folder.

    Examples: `hf-arch eval results/quickstart/gla_1a2b3c4d5e --tasks perplexity,sentence_completion`,
    `hf-arch eval results/quickstart --tasks comprehensive,hellaswag --limit 200 --output-json scores.json`.
    """
    with redirect_stdout(sys.stderr):
        from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path, print_scores, split_names
        from hf_arch.evaluation.text_loss import TextOptions
        from hf_arch.experiments.store import to_jsonable, write_json_atomic
        from hf_arch.training.run import quiet_libraries

        options = EvalOptions(
            tasks=split_names(tasks),
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            limit=limit,
            include_path=include_path,
            rows=rows,
            text=TextOptions(file=text, stride=stride, limit=limit, batch_size=batch_size),
        )
        with quiet_libraries():
            document = evaluate_path(path, options)
    if output_json is not None:
        write_json_atomic(output_json, document)
    if as_json:
        _print_json(to_jsonable(document))
    else:
        print_scores(document)
    return 0


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))
