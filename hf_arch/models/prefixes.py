"""Prefix language models (Liu et al. 2018, arXiv 1801.10198; Raffel et al. 2020, arXiv 1910.10683): tokens of a prefix
see each other both ways, all later ones are causal.

    token t sees s   where   s <= t,   or both are in the prefix of one document

The config says `prefix_lm: true`, and a call which tokens are in the prefix: `token_type_ids` [B, T], 1 there and 0
elsewhere, as transformers' HrmText has it. A call without them is causal. A prefix is the first tokens of its document,
in the first call of a cache; `generate` gives new tokens type 0.

Legend: B batch, T tokens of the call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.errors import ConfigError
from ..core.registry import POSITIONS
from ..layers.compat import assert_async, attention_implementation
from ..layers.documents import Documents, require

IGNORED = -100
"""The label of a token that no loss counts."""


def check_prefix_lm(config: Any) -> None:
    """Raise a ConfigError where a part cannot follow a mask in which earlier tokens see later ones."""
    if not config.prefix_lm:
        return
    for index, (mixer, given) in enumerate(config.mixer_specs):
        if not mixer.takes_prefix(config, given):
            name = (config.mixer if isinstance(config.mixer, dict) else config.mixer[index % len(config.mixer)])["type"]
            raise ConfigError(
                f"prefix_lm: True is not supported by mixer {name!r} of layer {index}, which cannot see later tokens; "
                "use attention over all tokens, without windows and forget gates, or prefix_lm false"
            )
    if POSITIONS.get(config.position, "position").bias:
        raise ConfigError(
            f"prefix_lm: True is not supported with position {config.position!r}, whose distances are to earlier "
            "tokens; use rope"
        )
    for loss, _ in config.loss_specs:
        if loss.reads_ids:
            raise ConfigError(
                f"prefix_lm: True is not supported with the loss {loss.__name__!r}, which would see its targets "
                "through the prefix; leave the loss out"
            )


def read_prefix(
    config: Any, token_types: Any, documents: Documents, past: Any, shape: tuple[int, int]
) -> Tensor | None:
    """[B, T] int64: which prefix a token is in, -1 for none; None where no token is in one.

    Args:
        token_types: as the model was given them. documents: what the call said of its documents.
        past: tokens in the cache. shape: (B, T).

    Raises:
        ValueError: a model that is causal, types other than 0 and 1, or a prefix that cannot be seen both ways.
    """
    if token_types is None:
        return None
    types = torch.as_tensor(token_types)
    if not config.prefix_lm:
        require((types == 0).all(), "token_type_ids: only zeros are allowed; attention is causal without prefix_lm")
        return None
    types = types.expand(shape[0], -1) if types.dim() == 2 and types.shape[0] == 1 else types
    if types.shape != shape:
        raise ValueError(f"token_type_ids: shape {tuple(types.shape)} is not allowed; pass {list(shape)}, as input_ids")
    require(((types == 0) | (types == 1)).all(), "token_type_ids: use 1 in the prefix and 0 behind it")
    if not torch.compiler.is_compiling() and not bool(types.any()):
        return None
    mask, segments = documents.attention_mask, documents.segment_ids
    cut = "token_type_ids: 1 after a filled cache; the whole prefix must be in the first call"
    if isinstance(past, Tensor):
        assert_async((past == 0) | (types == 0).all(), cut)
    elif past:
        require((types == 0).all(), cut)
        return None
    if isinstance(mask, dict):
        return None  # finished masks, made by `create_masks_for_generate` from the same types
    if isinstance(mask, Tensor) and mask.dim() != 2:
        raise ValueError("token_type_ids: attention_mask over pairs of tokens says who sees whom already; use one way")
    if attention_implementation(config) not in ("sdpa", "eager"):
        raise ValueError(
            f"token_type_ids: a prefix is not supported under {attention_implementation(config)}; use sdpa or eager"
        )
    valid = torch.ones_like(types, dtype=torch.bool) if mask is None else mask[:, -shape[1] :].bool()
    require(
        ~_later(types == 1, valid, segments).any(), "token_type_ids: a prefix must be the first tokens of a document"
    )
    numbers = torch.zeros_like(types) if segments is None else segments.expand(shape).to(types.device)
    return torch.where((types == 1) & valid, numbers, -1)


def _later(prefix: Tensor, valid: Tensor, segments: Tensor | None) -> Tensor:
    """[B, T]: tokens of a prefix with one that is not before them in their document."""
    plain = (valid & ~prefix).long().cumsum(1)
    if segments is None:
        return prefix & valid & (plain > 0)
    starts = torch.zeros_like(valid)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    before = torch.where(starts, plain - (valid & ~prefix).long(), 0).cummax(1).values
    return prefix & valid & (plain > before)


def check_labels(token_types: Any, labels: Tensor, shifted: Any) -> None:
    """Raise a ValueError where a label is a token that the one before it sees."""
    if token_types is None:
        return
    types = torch.as_tensor(token_types, device=labels.device)
    targets = labels[:, 1:] if shifted is None else shifted[:, :-1]
    seen = ((types[:, 1:] == 1) & (types[:, :-1] == 1)).expand(targets.shape)
    require(
        ~(seen & (targets != IGNORED)).any(),
        f"labels: tokens of the prefix see each other, so that none is a target; set labels to {IGNORED} in the prefix",
    )
