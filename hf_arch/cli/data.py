"""`hf-arch data`: text that is prepared before anything is trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hf_arch.cli.arguments import AsJson, DryRun
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.cli.panels import TRAIN

if TYPE_CHECKING:
    from hf_arch.data import DataOptions


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    commands = typer.Typer(no_args_is_help=True, help="Prepare training text.")
    commands.command("prepare")(data_prepare)
    app.add_typer(commands, name="data", rich_help_panel=TRAIN)


def data_prepare(
    corpus: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A known corpus, or txt, jsonl or parquet files.")],
    tokenizer: Annotated[str, typer.Option(help="`char`, `byte`, `bpe`, a path, or a Hub id.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Vocabulary size of a `bpe` tokenizer trained on the text.")] = 4096,
    text_column: Annotated[str, typer.Option(help="The column of jsonl and parquet files with the text.")] = "text",
    out: Annotated[
        str | None, typer.Option("--out", "--output", help="Folder for the shards; by default in the cache.")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of files.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise.")] = 1,
    max_train_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many training tokens; required for streamed corpora.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Read or download text, tokenise it and write shards that training maps into memory; existing shards are reused.

    - `hf-arch data prepare shakespeare`
    - `hf-arch data prepare texts/ --tokenizer char --out shards/`
    - `hf-arch data prepare shakespeare --dry-run`
    """
    with only_results_on_stdout():
        from hf_arch.data import DataOptions, prepare_shards

    options = DataOptions(
        corpus=corpus,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_column=text_column,
        max_train_tokens=max_train_tokens,
    )
    if dry_run:
        return preview_data(options, out, shards, workers, as_json)
    done = prepare_shards(options, out, shards=shards, workers=workers)
    if as_json:
        tokens = {split: done.meta.total(split, "tokens") for split in done.meta.splits}
        print_json({"folder": str(done.folder), "created": done.created, "tokens": tokens})
    else:
        print(f"{done.folder}: {'written' if done.created else 'nothing to do'}")
    return 0


def preview_data(options: DataOptions, out: str | None, shards: int | None, workers: int, as_json: bool) -> int:
    """Prints what preparing the corpus would take; the exit code. Raises `ConfigError` as the preparation does."""
    with only_results_on_stdout():
        from hf_arch.core.formats import NOTHING, byte_size, duration, quantity
        from hf_arch.data.forecast import forecast_data

    found = forecast_data(options, out, shards=shards, workers=workers)
    if as_json:
        print_json(found.to_dict())
        return 0
    for line in found.warnings:
        print(line)
    if found.ready:
        print(f"{found.folder}: nothing to do")
        return 0
    print(f"to write: {found.folder or 'shards, once the text is here'}")
    print(f"text: {byte_size(found.text_bytes)}, {quantity(found.tokens)} tokens")
    processes = f"{workers} process{'es' if workers > 1 else ''}"
    known = f"{duration(found.seconds)}, " if found.seconds is not None else ""
    print(f"time on this device (cpu, {processes}): {known}{found.basis}")
    print(f"memory: {byte_size(found.memory_bytes)}; disk: {byte_size(found.disk_bytes)}; {NOTHING}")
    return 0
