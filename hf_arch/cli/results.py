"""`hf-arch compare` and `hf-arch report`: what finished runs say."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson
from hf_arch.cli.panels import RESULTS


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command(rich_help_panel=RESULTS)(compare)
    app.command(rich_help_panel=RESULTS)(report)


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Run folders or folders of runs.", autocompletion=completion.runs),
    ] = None,
    latest: Annotated[int | None, typer.Option(min=1, help="Compare the N newest runs instead.")] = None,
    results_dir: Annotated[str | None, typer.Option(help="Where `--latest` looks for runs; default `results`.")] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the table as CSV.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metric that ranks and judges the runs; default: the recipe's.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compare runs in one table, with a fairness audit and statistics over seeds.

    - `hf-arch compare results/quickstart`
    - `hf-arch compare --latest 4 --csv table.csv`
    """
    from hf_arch.cli.compare import compare_command

    return compare_command(runs or [], latest, results_dir, csv, as_json, metric)


def report(
    results_dir: Annotated[
        str, typer.Argument(metavar="RESULTS_DIR", help="A folder of runs.", autocompletion=completion.runs)
    ],
    output: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="By default `report.html`, `report.pdf`, `paper/` or `csv/` in RESULTS_DIR.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            **completion.choices("html|latex|csv|pdf"),
            help="A page, a paper's folder, tables, or the page printed.",
        ),
    ] = "html",
) -> int:
    """Write one HTML page about the runs in a folder, or what a paper needs of them.

    - `hf-arch report results/quickstart`
    - `hf-arch report results/quickstart --format latex`
    """
    from hf_arch.cli.report import report_command

    return report_command(results_dir, output, form)
