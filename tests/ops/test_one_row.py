"""The product of a single row is the Linear layer's, and only where nobody looks at or changes the layer's call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.layers import plain_linear
from hf_arch.layers.plain_linear import project
from hf_arch.ops import one_row
from hf_arch.ops.one_row import groups_of, row_product


@pytest.fixture(autouse=True)
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that gains by it."""
    monkeypatch.setattr(plain_linear, "batches_are_faster", lambda: True)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 48), (48,)])
@pytest.mark.parametrize("rows", [64, 37, 1, 0])
def test_it_is_the_layers_product(rows: int, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(48, max(rows, 1), bias), torch.randn(shape)
    if rows == 0:
        layer.weight = nn.Parameter(layer.weight[:0])
        layer.out_features, layer.bias = 0, nn.Parameter(torch.empty(0)) if bias else None
    torch.testing.assert_close(project(layer, x), layer(x), atol=1e-5, rtol=1e-5)


def test_groups_share_the_rows_evenly() -> None:
    assert [groups_of(rows) for rows in (4096, 1024, 27, 50257, 37)] == [2, 2, 3, 29, 1]


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


SEEN: dict[str, Callable[[], Any]] = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a counter": lambda: FlopCounterMode(display=False),
}


@torch.no_grad()
@pytest.mark.parametrize("way", [*SEEN, "bf16", "two rows", "a global hook", "nothing"])
def test_only_a_plain_step_goes_the_short_way(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short: list[bool] = []
    monkeypatch.setattr(plain_linear, "row_product", lambda *given: (short.append(True), row_product(*given))[1])
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
@pytest.mark.parametrize(("maker", "taken"), [("AuthenticAMD", True), ("GenuineIntel", False), (None, False)])
def test_the_processors_maker_decides(maker: str | None, taken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured: on Intel's the batch takes twice as long."""
    monkeypatch.setattr(one_row, "processor_says", lambda name: maker)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert one_row.batches_are_faster.__wrapped__() == taken
