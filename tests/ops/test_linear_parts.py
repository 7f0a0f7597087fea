"""Parts of a projection that are stored by themselves are those of the Linear layer, as are their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_arch.layers.plain_linear import project_parts


def gradients(parts: tuple[Tensor, ...], *wanted: Tensor) -> tuple[Tensor, ...]:
    """Of a sum over all parts but the last, which nobody reads."""
    return torch.autograd.grad(sum(part.square().sum() for part in parts[:-1]), wanted)


@pytest.mark.parametrize("sizes", [(20, 20), (7, 30, 3), (24, 0, 16), (40, 0)])
@pytest.mark.parametrize("frozen", [None, "x", "weight"])
def test_parts_are_those_of_the_layer(sizes: tuple[int, ...], frozen: str | None) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40, bias=False), torch.randn(2, 5, 24, requires_grad=frozen != "x")
    layer.weight.requires_grad_(frozen != "weight")
    found, expected = project_parts(layer, x, sizes), layer(x).split(sizes, -1)
    assert all(part.is_contiguous() for part in found)
    wanted = [x for x in (x, layer.weight) if x.requires_grad]
    for one, other in zip(
        (*found, *gradients(found, *wanted)), (*expected, *gradients(expected, *wanted)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(layer: nn.Linear) -> nn.Linear:
    layer.register_forward_hook(lambda module, given, out: 2 * out)
    return layer


@pytest.mark.parametrize("change", [hooked, lambda layer: Doubled(24, 40), lambda layer: nn.Linear(24, 40)])
def test_whatever_is_put_around_a_layer_runs(change: Callable[[nn.Linear], nn.Linear]) -> None:
    layer, x = change(nn.Linear(24, 40, bias=False)), torch.randn(2, 5, 24)
    assert torch.equal(torch.cat(project_parts(layer, x, (16, 24)), -1), layer(x))


def test_who_counts_and_who_casts_sees_one_product() -> None:
    layer, x = nn.Linear(24, 40, bias=False), torch.randn(2, 5, 24)
    with FlopCounterMode(display=False) as counter:
        project_parts(layer, x, (16, 24))
    assert counter.get_total_flops() == 2 * 10 * 24 * 40
    with torch.autocast("cpu", torch.bfloat16):
        assert {part.dtype for part in project_parts(layer, x, (16, 24))} == {torch.bfloat16}
