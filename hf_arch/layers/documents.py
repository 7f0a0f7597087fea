"""Which tokens of a call are padding and which document each one belongs to, in whatever way the caller says so.

Documents packed into one row may be given by `position_ids` that restart, by their borders (`cu_seq_lens_q/k`,
`cu_seqlens`), by their numbers (`seq_idx`, or an `attention_mask` of 1, 1, 1, 2, 2), or by a mask over pairs of tokens
[B, T, T] or [B, 1, T, T] that is causal within blocks. Each way becomes one form: the tokens that start a document. Two
ways that disagree are an error. So is a mask over pairs that says anything else, where a layer keeps a recurrent state:
such a layer sees all earlier tokens of its document.

Nothing branches on data under a compiler: what is an error otherwise is an assertion in the graph there.

Legend: B batch, T tokens of this call, S keys (those in the cache, then T), H heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from .compat import assert_async
from .pair_masks import pairs_as_blocks, unreadable_pairs

BORDERS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens")
"""Arguments with the ends of documents in the flattened batch, after a 0: integers [N + 1]."""
LENGTHS = ("max_length_q", "max_length_k")
ARGUMENTS = (*BORDERS, *LENGTHS, "seq_idx")
"""Keyword arguments that describe documents."""


class Documents(NamedTuple):
    """What a call says of its tokens.

    Attributes:
        attention_mask: what attention's masks are made from: [B, S] bool (True = valid), a finished mask, or None.
        segment_ids: [B, T] int64, the document of each token, counted from 0; None where each row is one document.
        position_ids: [B, T] int64, as given or counted within each document; None where the mask decides.
    """

    attention_mask: Any
    segment_ids: Tensor | None = None
    position_ids: Tensor | None = None


class Call(NamedTuple):
    """The sizes of a call: B, T, the tokens in the cache (a tensor where the cache is static), and the device."""

    batch: int
    length: int
    past: Any
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether the cache is known to be empty."""
        return isinstance(self.past, int) and self.past == 0


def read_documents(
    call: Call, attention_mask: Any, position_ids: Tensor | None, told: dict[str, Any], *, has_states: bool
) -> Documents:
    """The padding and the documents of a call.

    Args:
        call: its sizes.
        attention_mask: [B, S] (0 is padding; integers from 1 on number documents), [B, T, S] or [B, 1 or H, T, S]
            (bool, or 0 and large negative numbers to be added), finished masks by kind of layer, or None.
        position_ids: [B or 1, T] or None.
        told: the arguments named in `ARGUMENTS`.
        has_states: whether a layer keeps a recurrent state.

    Raises:
        ValueError: shapes that do not fit, ways that disagree, a mask that a recurrent layer cannot follow, documents
            after a filled cache. Under a compiler, what depends on the values is a RuntimeError of the graph.
    """
    told = {name: value for name, value in told.items() if value is not None}
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        if not isinstance(attention_mask, (dict, BlockMask)):
            raise ValueError(f"attention_mask: a {type(attention_mask).__name__} is not allowed; pass a tensor [B, S]")
        if told:
            raise ValueError(f"{min(told)}: documents need attention_mask=None or [B, T], not finished masks")
        if has_states and not isinstance(attention_mask, dict):
            raise ValueError(unreadable_pairs(f"a {type(attention_mask).__name__}"))
        return Documents(attention_mask, None, position_ids)
    position_ids = None if position_ids is None else _rows(position_ids, "position_ids", call)
    if attention_mask is not None and attention_mask.dim() != 2:
        return _documents_of_pairs(call, attention_mask, position_ids, told, has_states)
    starts: dict[str, Tensor] = {}
    valid = None
    if attention_mask is not None:
        numbers = _token_mask(attention_mask, call)
        attention_mask = numbers.bool()
        valid = attention_mask[:, -call.length :]
        if _has_numbers(numbers):
            require(call.is_first, "attention_mask: documents after a filled cache are not supported")
            starts["attention_mask"] = _changes(numbers, valid)
            _require_rising(numbers, valid, "attention_mask")
        elif not torch.compiler.is_compiling() and bool(attention_mask.all()):
            attention_mask = None if call.is_first else attention_mask
            valid = None
    return _combine(call, starts, attention_mask, valid, position_ids, told)


def require(condition: Tensor | bool, message: str) -> None:
    """A ValueError unless `condition`; a tensor under a compiler is asserted when the graph runs (RuntimeError)."""
    if isinstance(condition, Tensor) and torch.compiler.is_compiling():
        assert_async(condition, message)
    elif not bool(condition):
        raise ValueError(message)


def refuse_numbers(attention_mask: Any) -> None:
    """An error where a mask over tokens numbers documents, for callers that take padding only."""
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and _has_numbers(attention_mask):
        raise ValueError("attention_mask: numbers of documents are not supported by generate; use 0 and 1")


def flash_arguments(segment_ids: Tensor, valid: Tensor | None) -> dict[str, Any]:
    """The borders of all documents of [B, T] in the flattened batch, for flash attention, which takes no mask over
    pairs. Padding becomes documents of its own.

    Raises:
        ValueError: padding inside a document.
    """
    border = torch.ones_like(segment_ids, dtype=torch.bool)
    border[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    if valid is not None:
        inside = _changes(segment_ids, valid)[:, 1:] | (_previous(valid)[:, 1:] < 0)
        gap = valid[:, 1:] & ~valid[:, :-1] & ~inside
        require(~gap.any(), "attention_mask: flash attention does not support padding inside a document; use sdpa")
        border[:, 1:] |= valid[:, 1:] != valid[:, :-1]
    ends = F.pad(border.flatten().nonzero().squeeze(1), (0, 1), value=border.numel()).to(torch.int32)
    longest = int(ends.diff().max())
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}


def _documents_of_pairs(
    call: Call, mask: Tensor, position_ids: Tensor | None, told: dict[str, Any], has_states: bool
) -> Documents:
    """The documents that a mask over pairs describes. Attention alone follows any mask as it stands, and its positions
    restart where the mask says documents."""
    if told:
        raise ValueError(f"{min(told)}: attention_mask over pairs of tokens describes documents already; use one way")
    if mask.dim() not in (3, 4) or mask.shape[0] not in (1, call.batch) or mask.shape[-2] != call.length:
        raise ValueError(
            f"attention_mask: shape {tuple(mask.shape)} does not fit {call.batch} rows of {call.length} tokens; "
            "allowed: [B, S], [B, T, S] or [B, 1 or heads, T, S]"
        )
    mask = (mask if mask.dim() == 4 else mask.unsqueeze(1)).to(call.device)
    if not mask.is_floating_point() and mask.dtype != torch.bool:
        require(((mask == 0) | (mask == 1)).all(), "attention_mask: integers over pairs must be 0 or 1")
        mask = mask.bool()
    elif mask.is_floating_point() and not torch.compiler.is_compiling():
        ones = mask == 1
        ambiguous = ((mask == 0) | ones).all() & ones.any()
        require(~ambiguous, "attention_mask: floats over pairs are added to the scores; for 0 and 1 use mask.bool()")
    square = call.is_first and mask.shape[-1] == call.length
    if not square:
        if has_states:
            raise ValueError(unreadable_pairs(f"a mask of shape {tuple(mask.shape)} and a cache"))
        return Documents(mask, None, position_ids)
    blocks = pairs_as_blocks(mask.expand(call.batch, -1, -1, -1))
    if has_states:
        require(blocks.readable.all(), unreadable_pairs("this mask over pairs of tokens"))
        starts = {"attention_mask": _changes(blocks.first_key, blocks.valid)}
        valid: Tensor | None = blocks.valid
        if not torch.compiler.is_compiling() and bool(blocks.valid.all()):
            valid = None
        return _combine(call, starts, valid, valid, position_ids, {})
    if position_ids is None:
        within = _positions_within(_changes(blocks.first_key, blocks.valid), blocks.valid, call)
        plain = torch.arange(call.length, device=call.device)
        position_ids = torch.where(blocks.readable[:, None], within, plain)
    return Documents(mask, None, position_ids)


def _combine(
    call: Call,
    starts: dict[str, Tensor],
    attention_mask: Tensor | None,
    valid: Tensor | None,
    position_ids: Tensor | None,
    told: dict[str, Any],
) -> Documents:
    """One answer from all ways that were used."""
    for name in BORDERS:
        if name in told:
            starts[name] = _changes(_numbers_of_borders(told[name], name, call), valid)
    if "seq_idx" in told:
        numbers = _rows(told["seq_idx"], "seq_idx", call).expand(call.batch, -1)
        _require_rising(numbers, valid, "seq_idx")
        starts["seq_idx"] = _changes(numbers, valid)
    lengths = [name for name in LENGTHS if name in told]
    if lengths and not any(name in starts for name in BORDERS):
        raise ValueError(f"{lengths[0]}: it needs the documents' borders; pass cu_seq_lens_q and cu_seq_lens_k too")
    if position_ids is not None and call.length > 1:
        starts["position_ids"] = _restarts(position_ids.expand(call.batch, -1), valid)
    if position_ids is not None and not call.is_first:
        _require_continuation(call, position_ids, attention_mask)
    if not starts:
        return Documents(attention_mask, None, position_ids)
    (name, chosen), *others = starts.items()
    for other, its in others:
        require((its == chosen).all(), f"{name} and {other} describe different documents; use one of the two")
    if not torch.compiler.is_compiling():
        for length in lengths:
            _require_length(int(told[length]), length, chosen)
        if not bool(chosen.any()):
            return Documents(attention_mask, None, position_ids)
    message = f"{name}: documents after a filled cache are not supported; use one call, or a cache for each document"
    if not call.is_first:
        require(~chosen.any(), message)
        return Documents(attention_mask, None, position_ids)
    if position_ids is None:
        position_ids = _positions_within(chosen, valid, call)
    return Documents(attention_mask, chosen.long().cumsum(1), position_ids)


def _rows(values: Any, name: str, call: Call) -> Tensor:
    """`values` as int64 [B or 1, T]."""
    values = torch.as_tensor(values, device=call.device)
    rows = values.unsqueeze(0) if values.dim() == 1 else values
    if rows.dim() != 2 or rows.shape[0] not in (1, call.batch) or rows.shape[1] != call.length:
        raise ValueError(
            f"{name}: shape {tuple(values.shape)} does not fit {call.batch} rows of {call.length} tokens; "
            f"allowed: [{call.batch}, {call.length}] or [1, {call.length}]"
        )
    return rows.long()


def _token_mask(mask: Tensor, call: Call) -> Tensor:
    """A mask over tokens [B, S] on the call's device, checked against the call's sizes."""
    rows, columns = mask.shape
    if rows not in (1, call.batch) or columns < call.length:
        raise ValueError(
            f"attention_mask: shape {tuple(mask.shape)} does not fit {call.batch} rows of {call.length} tokens"
        )
    if isinstance(call.past, int) and columns != call.past + call.length:
        raise ValueError(
            f"attention_mask: {columns} columns, but the cache holds {call.past} tokens and this call {call.length}; "
            f"it must cover all {call.past + call.length}"
        )
    if isinstance(call.past, Tensor):
        line = f"attention_mask: {columns} columns; it must cover the tokens in the cache and this call's {call.length}"
        fits = call.past + call.length == columns
        if call.past.device.type == "cpu":
            require(fits, line)
        else:
            assert_async(fits, line)  # to read it would wait for the device at every step
    return mask.to(call.device).expand(call.batch, -1)


def _has_numbers(mask: Tensor) -> bool:
    """Whether a mask over tokens numbers documents; never under a compiler, where the graph asserts it."""
    if mask.dtype == torch.bool:
        return False
    if mask.is_floating_point():
        message = "attention_mask: floats over tokens must be 0 (padding) or 1; a mask that is added is over pairs"
        require(((mask == 0) | (mask == 1)).all(), message)
        return False
    if torch.compiler.is_compiling():
        message = "attention_mask: under torch.compile it must be 0 or 1; describe documents by position_ids"
        require(((mask == 0) | (mask == 1)).all(), message)
        return False
    low, high = mask.aminmax()
    require(low >= 0, "attention_mask: negative integers are not allowed; use 0 for padding and 1, or documents from 1")
    return bool(high > 1)


def _numbers_of_borders(borders: Any, name: str, call: Call) -> Tensor:
    """[B, T] int64: the document of each token, from the ends of all documents in the flattened batch."""
    ends = torch.as_tensor(borders, device=call.device).long()
    ends = ends.squeeze(0) if ends.dim() == 2 and ends.shape[0] == 1 else ends
    total = call.batch * call.length
    if ends.dim() != 1 or ends.shape[0] < 2:
        raise ValueError(f"{name}: shape {tuple(ends.shape)} is not allowed; pass integers [documents + 1]")
    ordered = (ends[0] == 0) & (ends[-1] == total) & (ends.diff() >= 0).all()
    borders_line = f"{name}: it must rise from 0 to {call.batch} x {call.length} tokens, the end of each document"
    require(ordered, borders_line)
    starts = torch.zeros(total + 1, dtype=torch.bool, device=call.device)
    starts = starts.scatter(0, ends.clamp(0, total), True)[:-1].view(call.batch, call.length)
    require(starts[:, 0].all(), f"{name}: a document reaches from one row into the next; each row needs its own")
    return starts.long().cumsum(1)


def _previous(valid: Tensor) -> Tensor:
    """[B, T]: where the valid token before each token is, -1 for none."""
    index = torch.arange(valid.shape[1], device=valid.device)
    latest = torch.where(valid, index, -1).cummax(1).values
    return F.pad(latest[:, :-1], (1, 0), value=-1)


def _changes(values: Tensor, valid: Tensor | None) -> Tensor:
    """[B, T] bool: valid tokens whose value differs from that of the valid token before them."""
    if valid is None:
        return F.pad(values[:, 1:] != values[:, :-1], (1, 0), value=False)
    previous = _previous(valid)
    return valid & (previous >= 0) & (values != values.gather(1, previous.clamp(min=0)))


def _restarts(position_ids: Tensor, valid: Tensor | None) -> Tensor:
    """[B, T] bool: valid tokens that do not follow the valid token before them. Positions may count padding or not."""
    if valid is None:
        return F.pad(position_ids.diff() != 1, (1, 0), value=False)
    previous = _previous(valid)
    step = position_ids - position_ids.gather(1, previous.clamp(min=0))
    distance = torch.arange(valid.shape[1], device=valid.device) - previous
    return valid & (previous >= 0) & (step != 1) & (step != distance)


def _require_rising(numbers: Tensor, valid: Tensor | None, name: str) -> None:
    rising = (numbers >= numbers.cummax(1).values) & (numbers >= 0)
    if valid is not None:
        rising = rising | ~valid
    require(rising.all(), f"{name}: the numbers of a row's documents must be 0 or more and not decrease")


def _require_length(length: int, name: str, starts: Tensor) -> None:
    """An error where a document is longer than the longest that was announced."""
    index = torch.arange(starts.shape[1] + 1, device=starts.device)
    begins = F.pad(starts, (0, 1), value=True)
    begins[:, 0] = True
    last = F.pad(torch.where(begins, index, 0).cummax(1).values[:, :-1], (1, 0))
    longest = int(torch.where(begins, index - last, 0).max())
    if length < longest:
        raise ValueError(f"{name}: {length} is less than the longest document, {longest} tokens")


def _require_continuation(call: Call, position_ids: Tensor, attention_mask: Tensor | None) -> None:
    """An error where a document starts with the first token of this call although the cache is filled. A single token
    is looked at on a CPU alone: elsewhere it would wait for the device at every step."""
    if not isinstance(call.past, int):
        return
    if call.length == 1 and (position_ids.device.type != "cpu" or torch.compiler.is_compiling()):
        return
    restarts = position_ids[:, :1] == 0
    if attention_mask is not None:
        chunk = attention_mask[:, -call.length :]
        restarts = ((position_ids == 0) & chunk).any(1) & attention_mask[:, : call.past].any(1)
    message = f"position_ids: 0 after a cache of {call.past} tokens; documents after a filled cache are not supported"
    require(~restarts.any(), message)


def _positions_within(starts: Tensor, valid: Tensor | None, call: Call) -> Tensor:
    """[B, T] int64: valid tokens counted from 0 in each document."""
    if valid is None:
        counted = torch.arange(call.length, device=call.device).expand(call.batch, -1)
    else:
        counted = (valid.long().cumsum(1) - 1).clamp(min=0)
    return counted - torch.where(starts, counted, 0).cummax(1).values
