"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. `training.max_steps=100`.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Show what would be done, with hours on this device, memory and disk; do nothing."),
]
Distributed = Annotated[
    str,
    typer.Option(
        metavar="auto|always|never",
        help="`auto` takes what was launched; `always` launches a process for each GPU, at least two, where nothing "
        "else did; `never` stops where several were launched.",
    ),
]
