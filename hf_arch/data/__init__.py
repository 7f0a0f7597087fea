"""From text to batches: corpora, tokenizers, token shards, packed rows, an order that is a function of (seed, step).

    prepared = prepare_data(DataOptions(corpus="shakespeare", tokenizer="bpe", sequence_length=256))
    order = prepared.order(seed=0)
    rows = [prepared.train[i] for i in order.indices(step=100, global_batch_size=32)]

Importing the package loads neither torch nor datasets: the names below are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_arch.core.lazy import lazy_imports
from hf_arch.data.options import DataOptions

if TYPE_CHECKING:
    from hf_arch.data.dataset import TokenDataset
    from hf_arch.data.order import MixtureOrder, SeededBatchSampler, SeededOrder, SeededSampler
    from hf_arch.data.prepare import PreparedData, PreparedShards, prepare_data, prepare_shards
    from hf_arch.data.tokenizer import build_tokenizer

_LAZY_IMPORTS = {
    "TokenDataset": ".dataset",
    "MixtureOrder": ".order",
    "SeededBatchSampler": ".order",
    "SeededOrder": ".order",
    "SeededSampler": ".order",
    "PreparedData": ".prepare",
    "PreparedShards": ".prepare",
    "prepare_data": ".prepare",
    "prepare_shards": ".prepare",
    "build_tokenizer": ".tokenizer",
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

__getattr__ = lazy_imports(__name__, _LAZY_IMPORTS)
