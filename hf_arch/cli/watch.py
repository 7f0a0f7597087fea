"""`hf-arch watch`: the report page of a folder while its runs are trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.panels import RESULTS

DEFAULT_PORT = 8642


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("watch", rich_help_panel=RESULTS)(watch_command)


def watch_command(
    results_dir: Annotated[
        str, typer.Argument(metavar="RESULTS_DIR", help="A folder of runs.", autocompletion=completion.runs)
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any free one.")] = DEFAULT_PORT,
) -> int:
    """Serve the report of a folder on localhost, refreshed as runs finish; Ctrl-C stops it.

    It may be started before the first run has finished, and writes nothing.

    - `hf-arch watch results/quickstart --port 8642`
    """
    from hf_arch.report.watch import ReportServer

    server = ReportServer(results_dir, port)

    def announce() -> None:
        print("Ctrl-C ends it", file=sys.stderr, flush=True)
        print(server.url, flush=True)

    server.serve(announce)
    return 0
