"""The command line; the only place with typer."""

from hf_arch.cli.root import app, main

__all__ = ["app", "main"]
