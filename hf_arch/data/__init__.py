"""From text to batches: corpora, tokenizers, token shards, packed rows, an order that is a function of (seed, step).

    prepared = prepare_data(DataOptions(corpus="shakespeare", tokenizer="bpe", sequence_length=256))
    order = prepared.order(seed=0)
    rows = [prepared.train[i] for i in order.indices(step=100, global_batch_size=32)]

Importing the package loads neither torch nor datasets: the names below are looked up on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_arch.data.options import DataOptions

if TYPE_CHECKING:
    from hf_arch.data.dataset import TokenDataset
    from hf_arch.data.order import MixtureOrder, SeededBatchSampler, SeededOrder, SeededSampler
    from hf_arch.data.prepare import PreparedData, PreparedShards, prepare_data, prepare_shards
    from hf_arch.data.tokenizer import build_tokenizer

_HOME = {
    "TokenDataset": "dataset",
    "MixtureOrder": "order",
    "SeededBatchSampler": "order",
    "SeededOrder": "order",
    "SeededSampler": "order",
    "PreparedData": "prepare",
    "PreparedShards": "prepare",
    "prepare_data": "prepare",
    "prepare_shards": "prepare",
    "build_tokenizer": "tokenizer",
}

__all__ = [
    "DataOptions",
    "MixtureOrder",
    "PreparedData",
    "PreparedShards",
    "SeededBatchSampler",
    "SeededOrder",
    "SeededSampler",
    "TokenDataset",
    "build_tokenizer",
    "prepare_data",
    "prepare_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
