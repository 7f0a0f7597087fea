"""What commands print where: results on stdout, the rest on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any


def only_results_on_stdout(when: bool = True) -> AbstractContextManager[Any]:
    """Whatever prints meanwhile prints to stderr, such as libraries that print while they are imported (transformers in
    W&B's offline mode); nothing changes where `when` is false."""
    return redirect_stdout(sys.stderr) if when else nullcontext()


def print_json(document: Any) -> None:
    """The one JSON document of `--json`."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_status(line: str) -> None:
    """What is going on, next to the results."""
    print(line, file=sys.stderr)
