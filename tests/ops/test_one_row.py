"""The kernels of a decoding step of one row do what torch does, and only where nobody looks at or changes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.core.registry import ACTIVATIONS
from hf_arch.layers.activations import activated, gated
from hf_arch.layers.norms import ArchLayerNorm, ArchLayerNormNoBias, ArchRMSNorm, WeightlessRMSNorm, normed
from hf_arch.layers.plain_linear import project
from hf_arch.ops.one_row import RowKernels, row_kernels
from hf_arch.ops.rotary import apply_rotary
from tests.ops.test_native import needs_kernels

pytestmark = needs_kernels
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def kernels() -> RowKernels:
    with torch.no_grad():
        found = row_kernels(torch.ones(1, 1, 4))
    assert found is not None
    return found


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 48), (48,), (1, 1, 37), (1, 1, 3)])
@pytest.mark.parametrize("rows", [64, 37, 3, 1, 0])
def test_it_is_the_layers_product(rows: int, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(shape[-1], max(rows, 1), bias), torch.randn(shape)
    if rows == 0:
        layer.weight = nn.Parameter(layer.weight[:0])
        layer.out_features, layer.bias = 0, nn.Parameter(torch.empty(0)) if bias else None
    torch.testing.assert_close(project(layer, x), layer(x), **CLOSE)


@torch.no_grad()
def test_threads_change_no_bit() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(300, 403), torch.randn(1, 1, 300)  # wide enough for more than one
    alone = project(layer, x)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(project(layer, x), alone)
    finally:
        torch.set_num_threads(threads)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, given, out: 2 * out)
    return layer


def _replaced(layer: nn.Linear) -> nn.Linear:
    former = layer.forward
    layer.forward = lambda x: 2 * former(x)  # type: ignore[method-assign]
    return layer


@torch.no_grad()
@pytest.mark.parametrize("change", [_hooked, _replaced, lambda layer: Doubled(48, 64)])
def test_whatever_is_put_around_a_layer_runs(change: Callable[[nn.Linear], nn.Linear]) -> None:
    torch.manual_seed(0)
    layer, x = change(nn.Linear(48, 64)), torch.randn(1, 1, 48)
    assert torch.equal(project(layer, x), layer(x))
    assert torch.equal(project(layer, x, kernels()), layer(x))


@torch.no_grad()
def test_a_row_of_another_width_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        project(nn.Linear(48, 64), torch.randn(1, 1, 47))
    with pytest.raises(RuntimeError, match="shape"):
        normed(ArchLayerNorm(48), torch.randn(1, 1, 47), kernels())


SEEN: dict[str, Callable[[], Any]] = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a counter": lambda: FlopCounterMode(display=False),
}


@torch.no_grad()
@pytest.mark.parametrize("way", [*SEEN, "bf16", "two rows", "a global hook", "torch", "nothing"])
def test_only_a_plain_step_goes_the_short_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short: list[bool] = []
    linear = RowKernels.linear
    monkeypatch.setattr(RowKernels, "linear", lambda *given: (short.append(True), linear(*given))[1])
    if way == "torch":
        monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    layer, x = nn.Linear(48, 64), torch.randn(1, 2 if way == "two rows" else 1, 48)
    if way == "bf16":
        layer, x = layer.bfloat16(), x.bfloat16()
    hook = nn.modules.module.register_module_forward_hook(lambda *given: None) if way == "a global hook" else None
    with SEEN.get(way, nullcontext)():
        out = project(layer, x)
    if hook is not None:
        hook.remove()
    assert bool(short) == (way == "nothing")
    assert out.requires_grad == (way == "gradients")


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 37, 3])
@pytest.mark.parametrize("kind", [ArchRMSNorm, WeightlessRMSNorm, ArchLayerNorm, ArchLayerNormNoBias])
def test_norms_of_a_row(kind: type[nn.Module], width: int) -> None:
    torch.manual_seed(0)
    norm, x = kind(width), 1 + 3 * torch.randn(1, 1, width)
    for parameter in norm.parameters():
        parameter.normal_()
    same, read = normed(norm, x, kernels())
    assert same is x
    torch.testing.assert_close(read, norm(x), **CLOSE)
    add = torch.randn(1, 1, width)
    total, read = normed(norm, x, kernels(), add)
    assert torch.equal(total, x + add)
    torch.testing.assert_close(read, norm(x + add), **CLOSE)
    norm.register_forward_hook(lambda module, given, out: 2 * out)
    assert torch.equal(normed(norm, x, kernels())[1], norm(x))
    assert torch.equal(normed(norm, x, kernels(), add)[1], norm(x + add))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 1, 37), (1, 1, 3), (1, 4, 21)])
def test_gates_of_a_row_and_of_several(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gate = torch.randn(2, *shape)
    for activation in (ACTIVATIONS.get("gelu_tanh", "hidden_act"), torch.sigmoid):
        torch.testing.assert_close(activated(x, activation, kernels()), activation(x), **CLOSE)
    torch.testing.assert_close(gated(x, gate, F.silu, kernels()), x * F.silu(gate), **CLOSE)
    assert torch.equal(gated(x, gate, torch.sigmoid, kernels()), x * torch.sigmoid(gate))


@torch.no_grad()
@pytest.mark.parametrize("turned", [0, 8, 12])
@pytest.mark.parametrize("past", [0, 1, 15, 63, 64, 200])
@pytest.mark.parametrize(
    ("heads", "key_heads", "width", "value_width"), [(4, 4, 12, 12), (6, 2, 24, 20), (3, 1, 12, 64)]
)
def test_attention_of_one_token(
    heads: int, key_heads: int, width: int, value_width: int, past: int, turned: int
) -> None:
    torch.manual_seed(past)
    keys, values = torch.randn(1, key_heads, past + 9, width), torch.randn(1, key_heads, past + 9, value_width)
    query, key = 3 * torch.randn(1, 1, heads * width), torch.randn(1, 1, key_heads * width)
    value = torch.randn(1, 1, key_heads * value_width)
    angles = torch.randn(1, 1, turned // 2).repeat(1, 1, 2)
    rotary = (angles.cos(), angles.sin()) if turned else None
    behind = keys[:, :, past + 1 :].clone(), values[:, :, past + 1 :].clone()
    before = keys[:, :, :past].clone(), values[:, :, :past].clone()
    out = kernels().attend(query, key, value, rotary, keys, values, past, 0.3)

    def rotated(x: torch.Tensor) -> torch.Tensor:
        split = x.unflatten(-1, (-1, width)).transpose(1, 2)
        return split if rotary is None else apply_rotary(split, *rotary)

    own = value.unflatten(-1, (key_heads, value_width)).transpose(1, 2)
    every = torch.cat((before[0], rotated(key)), 2), torch.cat((before[1], own), 2)
    torch.testing.assert_close(keys[:, :, : past + 1], every[0], **CLOSE)
    torch.testing.assert_close(values[:, :, : past + 1], every[1], atol=0, rtol=0)
    assert torch.equal(keys[:, :, past + 1 :], behind[0])
    assert torch.equal(values[:, :, past + 1 :], behind[1])
    wide = [each.repeat_interleave(heads // key_heads, 1).double() for each in every]
    exact = F.scaled_dot_product_attention(rotated(query).double(), *wide, scale=0.3)
    torch.testing.assert_close(out, exact.transpose(1, 2).flatten(2).float(), **CLOSE)


@torch.no_grad()
def test_a_score_far_above_the_others_and_one_that_is_no_number() -> None:
    keys = torch.zeros(1, 2, 80, 8)
    values = torch.randn(1, 2, 80, 8)
    keys[:, :, 70] = 100.0
    query, key, value = torch.full((1, 1, 16), 10.0), torch.zeros(1, 1, 16), torch.randn(1, 1, 16)
    out = kernels().attend(query, key, value, None, keys, values, 79, 1.0).view(2, 8)
    assert torch.equal(out, values[0, :, 70])
    keys[0, 1, 3, 0] = float("nan")
    out = kernels().attend(query, key, value, None, keys, values, 79, 1.0).view(2, 8)
    assert torch.equal(out[0], values[0, 0, 70])
    assert out[1].isnan().all()
