"""The further keyword arguments that a model's forward knows: what transformers, its Trainer and `generate`, and
the libraries around them pass. Any other would be lost in `**kwargs`, so it is refused by name.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch import Tensor
from transformers.utils import TransformersKwargs

from ..core.errors import nearest
from ..layers.compat import assert_async
from ..layers.documents import ARGUMENTS

KNOWN = {
    *TransformersKwargs.__optional_keys__,
    *ARGUMENTS,
    "token_type_ids",  # read by `prefixes.py`
    "use_cache",
    "return_dict",
    "shift_labels",  # Trainer, where a sequence is split over processes
    "cache_position",  # PEFT's prefix tuning
    "debug_io",  # transformers' model debugger
    "debug_io_dir",
    "prune_layers",
    "attention_instances",  # vLLM and SGLang, for their attention functions
    "forward_batch",
}
HINTS = {
    "documents": "describe packed documents by position_ids that restart at 0, cu_seq_lens_q and cu_seq_lens_k, "
    "cu_seqlens, seq_idx, or an attention_mask with a number for each document",
    "cache": "the cache is past_key_values",
    "pipeline": "pipeline parallelism (pp_size) is not supported; take tp_size or fsdp_size",
}
_OF_PIPELINES = "kwargs"
"""What transformers' pipeline stages pass, as an argument of that name."""
_DOCUMENT_LIKE = re.compile(r"seq|doc|segment|pack|indices|lens|length|batch|sample|block|boundar|offset|split")
_CACHE_LIKE = re.compile(r"cache|past|state|memory")


def check_keywords(model: str, given: dict[str, Any], call: tuple[Any, int, torch.device]) -> dict[str, Any]:
    """The arguments that were given, without those that are None.

    Args:
        model: name of the model's class, for the error.
        given: keyword arguments besides those that the forward names.
        call: (tokens in the cache, tokens of this call, device).

    Raises:
        ValueError: an argument that nothing reads, or a value of a known one that is not supported.
    """
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in KNOWN:
            raise ValueError(f"{model}.forward: unknown argument {name!r}; {_hint(name)}")
    if "cache_position" in given:
        past, length, device = call
        expected = torch.arange(length, device=device) + past
        _require_equal(
            "cache_position", given.pop("cache_position"), expected, "it must continue from the cache's length"
        )
    if given.get("is_causal") is False:
        raise ValueError(f"is_causal: False is not supported, {model} is causal; leave it out")
    return given


def _require_equal(name: str, value: Any, expected: Any, reason: str) -> None:
    value = torch.as_tensor(value)
    if torch.compiler.is_compiling():
        assert_async((value == expected).all(), f"{name}: {reason}")
        return
    if isinstance(expected, Tensor) and value.shape[-1:] != expected.shape:
        raise ValueError(f"{name}: shape {tuple(value.shape)} is not allowed; {reason}")
    if not bool((value == expected).all()):
        raise ValueError(f"{name}: {reason}")


def _hint(name: str) -> str:
    if name == _OF_PIPELINES:
        return HINTS["pipeline"]
    typo = difflib.get_close_matches(name, KNOWN - set(ARGUMENTS), n=1, cutoff=0.85)
    if not typo and _CACHE_LIKE.search(name):
        return HINTS["cache"]
    if not typo and _DOCUMENT_LIKE.search(name):
        return HINTS["documents"]
    near = typo[0] if typo else nearest(name, KNOWN)
    return f"nearest: {near!r}" if near else f"allowed: {', '.join(sorted(KNOWN))}"
