"""Attention with products of bf16 and of fp32, against the formula in fp64 and torch's own attention in that dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.ops import attention as module
from hf_arch.ops.attention import attention, has_attention, most_keys
from tests.suite.models import perturbed_model, token_ids

BF16, FP32 = torch.bfloat16, torch.float32
has_bf16 = most_keys(BF16) > 0
needs_products = pytest.mark.skipif(not has_bf16, reason="no products of bf16")
needs_kernels = pytest.mark.skipif(not most_keys(FP32), reason="no vectors of eight numbers, or no C compiler")
each_dtype = pytest.mark.parametrize(
    "dtype", [pytest.param(BF16, marks=needs_products), pytest.param(FP32, marks=needs_kernels)], ids=["bf16", "fp32"]
)
# Batch, heads, heads of keys, queries, keys, their width, that of values: around the 32 rows of a tile, the 64 of a
# block, the 128 keys and the 512 queries that are computed together.
SHAPES = [
    *[(2, 2, 2, 7, 7, 3, 5), (2, 4, 4, 33, 33, 24, 24), (2, 6, 2, 70, 70, 40, 56), (1, 4, 1, 65, 130, 64, 16)],
    *[(1, 2, 2, 64, 64, 32, 32), (1, 2, 2, 128, 128, 96, 96), (1, 2, 1, 530, 530, 16, 16), (1, 1, 1, 40, 200, 16, 16)],
]
MASKS = ["none", "padding", "window", "documents", "scattered"]


def inputs(shape: tuple[int, ...], *dtypes: torch.dtype) -> list[Tensor]:
    batch, heads, kv_heads, length, total, width, values = shape
    torch.manual_seed(length)
    made = [
        torch.randn(batch, length, heads, width).transpose(1, 2),
        torch.randn(batch, total, kv_heads, width).transpose(1, 2),
        torch.randn(batch, kv_heads, total, values),
    ]
    return [x.to(dtype).requires_grad_() for x, dtype in zip(made, dtypes, strict=True)]


def mask_of(kind: str, shape: tuple[int, ...]) -> Tensor | None:
    """With rows that see nothing in all but "window"."""
    batch, heads, _, length, total, *_ = shape
    back = torch.arange(length)[:, None] + total - length - torch.arange(total)
    if kind == "none":
        return None
    if kind == "scattered":
        return (torch.rand(batch, heads, length, total) < 0.3) & (torch.arange(length) != length // 2)[:, None]
    if kind == "window":
        return ((back >= 0) & (back < 20))[None, None]
    if kind == "documents":
        document = torch.randint(0, 2, (batch, total)).cumsum(1) // 9
        same = document[:, None, -length:, None] == document[:, None, None]
        return same & (back >= 0) & (torch.arange(length) != 1)[:, None]
    valid = torch.arange(total) >= torch.randint(1, length // 2 + 1, (batch, 1)) + total - length
    return (back >= 0) & valid[:, None, None]


def formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    query, key, value = query.double(), key.double(), value.double()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * scale
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if mask is None else mask
    return (scores.masked_fill(~mask, -1e30).softmax(-1).masked_fill(~mask, 0) @ value).transpose(1, 2)


def mine(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda query, key, value, mask, scale: attention(query, key, value, mask, scale, dtype)


def torchs(dtype: torch.dtype) -> Callable[..., Tensor]:
    def function(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        groups, width = query.shape[1] // key.shape[1], value.shape[-1]
        query, key, value = (x.to(dtype) for x in (query, key, value))
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        wide = max(key.shape[-1], width)
        query, key, value = (F.pad(x, (0, wide - x.shape[-1])) for x in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale)
        return out.transpose(1, 2)[..., :width]

    return function


def results(function: Callable[..., Tensor], given: list[Tensor], mask: Tensor | None, scale: float) -> list[Tensor]:
    """The output and the gradients of queries, keys and values."""
    out = function(*given, mask, scale)
    torch.manual_seed(0)
    grad = torch.randn(out.shape).bfloat16().to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, given, grad)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def check(shape: tuple[int, ...], kind: str, given: list[Tensor], dtype: torch.dtype) -> None:
    mask, scale = mask_of(kind, shape), 1.3 * shape[5] ** -0.5
    assert has_attention(*given, mask, dtype) or not module.LEAST[dtype] <= shape[4] <= module.WITHOUT_TILES
    ours, exact, theirs = (results(f, given, mask, scale) for f in (mine(dtype), formula, torchs(dtype)))
    assert ours[0].dtype == dtype and [x.dtype for x in ours[1:]] == [x.dtype for x in given]
    for found, right, other in zip(ours, exact, theirs, strict=True):
        # Sums in another order: of few numbers either may be the nearer one.
        assert error(found, right) < 1.15 * error(other, right) + (1e-4 if dtype == BF16 else 2e-7)


@needs_products
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("wide", [True, False])
def test_bf16_is_as_exact_as_torchs(shape: tuple[int, ...], kind: str, wide: bool) -> None:
    dtype = FP32 if wide else BF16
    check(shape, kind, inputs(shape, dtype, dtype, BF16), BF16)


@needs_kernels
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fp32_is_as_exact_as_torchs(shape: tuple[int, ...], kind: str) -> None:
    check(shape, kind, inputs(shape, FP32, FP32, FP32), FP32)


@each_dtype
@pytest.mark.parametrize("kind", ["none", "padding"])
def test_outputs_before_a_changed_token_keep_their_bits(kind: str, dtype: torch.dtype) -> None:
    shape = (2, 2, 1, 150, 150, 24, 24)
    given, mask = inputs(shape, *3 * [torch.float32]), mask_of(kind, shape)
    with torch.no_grad():
        before = mine(dtype)(*given, mask, 0.2)
        for x in given:
            x[:, :, 101:] = 50 * torch.randn_like(x[:, :, 101:])
        after = mine(dtype)(*given, mask, 0.2)
    assert torch.equal(before[:, :101], after[:, :101]) and not torch.equal(before[:, 101:], after[:, 101:])


@each_dtype
@pytest.mark.parametrize("kind", MASKS)
def test_bits_do_not_depend_on_threads_or_on_a_gradient(kind: str, dtype: torch.dtype) -> None:
    shape = (2, 6, 2, 530, 530, 16, 16)
    given, mask, threads = inputs(shape, *3 * [torch.float32]), mask_of(kind, shape), torch.get_num_threads()
    first = results(mine(dtype), given, mask, 0.2)
    try:
        for count in (1, 2, 3, 16):
            torch.set_num_threads(count)
            assert all(map(torch.equal, first, results(mine(dtype), given, mask, 0.2)))
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        assert torch.equal(first[0], mine(dtype)(*given, mask, 0.2))
    for row in range(shape[0]):  # nor on the other rows
        alone = [x[row : row + 1] for x in given]
        seen = mask if mask is None or len(mask) == 1 else mask[row : row + 1]
        assert torch.equal(first[0][row], mine(dtype)(*alone, seen, 0.2)[0])


@each_dtype
def test_what_is_not_a_number_stays_in_its_row(dtype: torch.dtype) -> None:
    shape = (3, 2, 2, 40, 40, 16, 16)
    for place in range(3):
        given = inputs(shape, *3 * [torch.float32])
        with torch.no_grad():
            given[place][1, 0, 5, 3] = float("nan")
        out, *grads = results(mine(dtype), given, None, 0.2)
        assert out[1, 5, 0].isnan().any() and (place or out[1, torch.arange(40) != 5, 0].isfinite().all())
        for found in (out.transpose(1, 2), *grads):
            assert found[[0, 2]].isfinite().all() and found[1, 1].isfinite().all()


@each_dtype
@pytest.mark.parametrize("strength", [30.0, 3000.0])
def test_large_scores(strength: float, dtype: torch.dtype) -> None:
    shape = (1, 2, 2, 90, 90, 32, 32)
    given = inputs(shape, *3 * [dtype])
    ours, exact, theirs = (results(f, given, None, strength) for f in (mine(dtype), formula, torchs(dtype)))
    for found, right, other in zip(ours, exact, theirs, strict=True):
        assert found.isfinite().all()
        assert float((found.double() - right).norm()) <= 1.1 * float((other.double() - right).norm()) + 1e-3


@each_dtype
@pytest.mark.parametrize("kind", MASKS)
def test_second_derivatives(kind: str, dtype: torch.dtype) -> None:
    shape = (1, 4, 2, 20, 20, 8, 8)
    given, mask = inputs(shape, *3 * [torch.float32]), mask_of(kind, shape)

    def twice(function: Callable[..., Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(function(*given, mask, 0.4).float().square().sum(), given, create_graph=True)
        return list(torch.autograd.grad(sum(x.square().sum() for x in first), given))

    for found, right in zip(twice(mine(dtype)), twice(formula), strict=True):
        assert error(found, right.double()) < (0.05 if dtype == BF16 else 1e-4)


@each_dtype
def test_gradients_of_some_inputs_and_checkpoints(dtype: torch.dtype) -> None:
    given = inputs((2, 2, 2, 40, 40, 16, 16), *3 * [torch.float32])
    plain = results(mine(dtype), given, None, 0.2)
    again = results(lambda *x: checkpoint(mine(dtype), *x, use_reentrant=False), given, None, 0.2)
    assert all(map(torch.equal, plain, again))
    fixed = [given[0].detach(), given[1], given[2].detach()]
    out = mine(dtype)(*fixed, None, 0.2)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(out, fixed[1], torch.randn(out.shape).bfloat16().to(dtype))
    assert torch.equal(found, plain[2])


@each_dtype
def test_a_gradient_with_strides(dtype: torch.dtype) -> None:
    given = inputs((2, 2, 2, 40, 40, 16, 16), *3 * [torch.float32])
    out = mine(dtype)(*given, None, 0.2)
    grads = [torch.randn(2, 2, 40, 16).to(dtype).transpose(1, 2), torch.ones((), dtype=dtype).expand(out.shape)]
    for grad in grads:
        found, same = (torch.autograd.grad(out, given, x, retain_graph=True) for x in (grad, grad.contiguous()))
        assert all(map(torch.equal, found, same))


@each_dtype
def test_torchs_own_takes_its_place_where_it_is_watched(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    plain = module._call
    monkeypatch.setattr(module, "_call", lambda name, *rest: called.append(name) or plain(name, *rest))
    model, ids = perturbed_model("llama", max_position_embeddings=128), token_ids(2, 70)

    def run(**options: Any) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
            model(ids, use_cache=False, **options).logits.sum().backward()

    run()
    assert set(called) == {"attention", "attention_backward"}
    called.clear()
    with FlopCounterMode(display=False):
        run()
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    run()
    monkeypatch.delenv("HF_ARCH_BACKEND")
    model.config.attention_dropout = 0.1
    model.train()
    run()
    model.config.attention_dropout = 0.0
    model.double()
    run()
    assert not called


@each_dtype
def test_torchs_products_are_right_afterwards(dtype: torch.dtype) -> None:
    """Its library configures tiles of its own."""
    given = inputs((1, 2, 2, 64, 64, 32, 32), *3 * [dtype])
    left, right = torch.randn(100, 72).bfloat16(), torch.randn(72, 90).bfloat16()
    before = left @ right, torchs(dtype)(*given, None, 0.2)
    for _ in range(3):
        mine(dtype)(*given, None, 0.2)
        assert torch.equal(left @ right, before[0]) and torch.equal(torchs(dtype)(*given, None, 0.2), before[1])


@each_dtype
def test_scratch_memory_is_large_enough(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it nothing is written."""
    guard = 4096
    plain, kept = torch.empty, []

    def guarded(*size: Any, **options: Any) -> Tensor:
        if options.get("dtype") != torch.uint8:
            return plain(*size, **options)
        whole = torch.full((size[0] * size[1] + guard,), 77, dtype=torch.uint8)
        kept.append(whole)
        return whole[:-guard]

    monkeypatch.setattr(module.torch, "empty", guarded)
    for shape in SHAPES:
        results(mine(dtype), inputs(shape, *3 * [torch.float32]), mask_of("scattered", shape), 0.2)
    assert kept and all(bool((x[-guard:] == 77).all()) for x in kept)
