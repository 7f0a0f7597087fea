"""What is known of a recipe's data before it is prepared, from what lies on this machine: nothing is downloaded,
tokenised or written. For dry runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import load_environment_plugins
from hf_arch.core.registry import CORPORA
from hf_arch.data.cache import data_cache, hash_text, user_path
from hf_arch.data.corpora import open_corpus
from hf_arch.data.corpus import Corpus
from hf_arch.data.hub import HUB_CORPORA
from hf_arch.data.options import DataOptions
from hf_arch.data.prepare import PreparedData, open_stores, reopen_store, rows_fingerprint, store_key
from hf_arch.data.python_docs import PythonDocs
from hf_arch.data.shakespeare import Shakespeare
from hf_arch.data.store import StoreMeta, read_meta
from hf_arch.data.tokenizer import TRAINED, read_tokenizer, tokenizer_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class FoundData:
    """`prepared`: the rows, where they are in the cache already. fingerprint: of the rows, None where only preparing
    them tells. tokenizer: None where it is not made or not on this machine."""

    prepared: PreparedData | None = None
    fingerprint: str | None = None
    tokenizer: PreTrainedTokenizerFast | None = None


def find_data(options: DataOptions) -> FoundData:
    """What `hf_arch.data.prepare_data` would find in the cache for these options.

    Raises:
        ConfigError: a corpus or file that does not exist, options that do not fit a folder of shards, or a prepared
            corpus that is too short for a row.
    """
    cache = data_cache()
    folder = user_path(options.corpus)
    meta = read_meta(folder) if options.mixture is None else None
    if meta is not None:
        return _known(open_stores(options, [reopen_store(folder, meta, options)]))
    names = list(options.mixture) if options.mixture is not None else [options.corpus]
    corpora = [corpus_here(name, options, cache) for name in names]
    found = [corpus for corpus in corpora if corpus is not None]
    text = hash_text(*(corpus.fingerprint() for corpus in found))
    try:
        key = tokenizer_key(options.tokenizer, options.vocab_size, text, offline=True)
    except ConfigError:
        if user_path(options.tokenizer).exists():
            raise  # what lies here should load; anything else may be on the Hub
        return FoundData()
    if len(found) < len(corpora) and options.tokenizer in TRAINED:
        return FoundData()
    tokenizer = cache / "tokenizers" / key
    loaded = read_tokenizer(tokenizer) if tokenizer.is_dir() else None
    if len(found) < len(corpora):
        return FoundData(tokenizer=loaded)
    keys = [store_key(options, corpus, key) for corpus in found]
    stores: list[tuple[Path, StoreMeta]] = []
    for place in (cache / "tokens" / name for name in keys):
        if (ready := read_meta(place)) is not None:
            stores.append((place, ready))
    if len(stores) == len(keys):
        return _known(open_stores(options, stores))
    return FoundData(None, rows_fingerprint(options, [(name, 1) for name in keys]), loaded)


def corpus_here(name: str, options: DataOptions, cache: Path) -> Corpus | None:
    """The corpus of that name without a download; None for one of a plugin, which may download when it is opened.

    Raises:
        ConfigError: no such corpus, file or folder.
    """
    if name not in CORPORA:
        load_environment_plugins()
    if name == Shakespeare.name:
        return Shakespeare.at(cache)
    if name in CORPORA and name not in (PythonDocs.name, *HUB_CORPORA):
        return None
    return open_corpus(name, options, cache, progress=False)


def _known(prepared: PreparedData) -> FoundData:
    return FoundData(prepared, prepared.fingerprint, prepared.tokenizer)
