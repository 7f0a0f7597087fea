"""`hf-arch data`: text that is prepared before anything is trained on it."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli.panels import TRAIN


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    commands = typer.Typer(no_args_is_help=True, help="Prepare training text.")
    commands.command("prepare")(data_prepare)
    app.add_typer(commands, name="data", rich_help_panel=TRAIN)


def data_prepare(
    corpus: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A known corpus, or txt, jsonl or parquet files.")],
    tokenizer: Annotated[str, typer.Option(help="`char`, `byte`, `bpe`, a path, or a Hub id.")] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Entries of a `bpe` made from the text.")] = 4096,
    text_column: Annotated[str, typer.Option(help="The column of jsonl and parquet that holds the text.")] = "text",
    out: Annotated[str | None, typer.Option(help="Folder of the shards; by default in the cache.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of files.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that tokenise.")] = 1,
    max_train_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many; endless corpora need it.")
    ] = None,
) -> int:
    """Read or download text, tokenise it and write shards that training maps into memory; again, it has nothing to do.

    Examples: `hf-arch data prepare shakespeare`, `hf-arch data prepare texts/ --tokenizer char --out shards/`.
    """
    from hf_arch.data import DataOptions, prepare_shards

    options = DataOptions(
        corpus=corpus,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        text_column=text_column,
        max_train_tokens=max_train_tokens,
    )
    done = prepare_shards(options, out, shards=shards, workers=workers)
    print(f"{done.folder}: {'written' if done.created else 'nothing to do'}")
    return 0
