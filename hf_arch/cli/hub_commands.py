"""What the commands `push`, `export`, `convert` and `quantize` do and print; each returns its exit code."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_arch.core.errors import choice_error
from hf_arch.core.formats import byte_size
from hf_arch.core.quiet import quiet_libraries
from hf_arch.hub.convert import Conversion, DifferentResult, convert
from hf_arch.hub.export import export_gguf, export_hub, export_torch
from hf_arch.hub.push import push_to_hub
from hf_arch.hub.quantize import quantize

EXPORT_FORMATS = ("hub", "gguf", "torch")


def push_command(path: str, repo_id: str, *, dry_run: bool = False, **options: Any) -> int:
    """Push a run or a saved model by `push_to_hub`, and say what was done; in a dry run, list every file."""
    with quiet_libraries():
        push = push_to_hub(path, repo_id, dry_run=dry_run, **options)
    if dry_run:
        table = Table("branch", "file", "size", title=f"{repo_id}: what would be pushed")
        for branch, name, size in push.files:
            table.add_row(branch, name, byte_size(size))
        Console().print(table)
        return 0
    for branch, commit in push.commits.items():
        print(f"{push.url} {branch}: {'nothing had changed' if commit is None else f'commit {commit[:12]}'}")
    return 0


def export_command(path: str, format: str, output: str | None = None, license: str | None = None) -> int:
    """Write a model as a self-contained repository (`hub`), or as one file: GGUF, or a program for torch."""
    if format not in EXPORT_FORMATS:
        raise choice_error("--format", format, EXPORT_FORMATS)
    with quiet_libraries():
        if format == "hub":
            written = export_hub(path, output, license=license)
        else:
            written = {"gguf": export_gguf, "torch": export_torch}[format](path, output)
    files = sorted(written.iterdir()) if written.is_dir() else [written]
    print(f"{written}: {len(files)} files, {byte_size(sum(file.stat().st_size for file in files))}")
    return 0


def convert_command(source: str, destination: str, to: str | None = None) -> int:
    """Convert a checkpoint, and print how far the result is from its source; 1 where it is too far to be kept."""

    def show(done: Conversion) -> None:
        print(f"{done.source} -> {done.result}: max abs difference {done.difference:.3g} ({done.reference})")

    try:
        with quiet_libraries():
            show(convert(source, destination, to))
    except DifferentResult as error:
        show(error.args[0])
        print(f"error: {destination}: not written, since the result differs from its source", file=sys.stderr)
        return 1
    print(f"{destination}: written")
    return 0


def quantize_command(path: str, destination: str, method: str, text: str | None = None) -> int:
    """Quantise a model, and print its size and, where there is text, its perplexity before and after."""
    with quiet_libraries():
        done = quantize(path, destination, method, text)
    print(f"{destination}: {byte_size(done.bytes_before)} -> {byte_size(done.bytes_after)}")
    if done.perplexity_before is None or done.perplexity_after is None:
        print("perplexity: not measured; name a text by --text")
    else:
        change = done.perplexity_after / done.perplexity_before - 1
        print(f"perplexity: {done.perplexity_before:.3f} -> {done.perplexity_after:.3f} ({change:+.2%}; {done.rows})")
    return 0
