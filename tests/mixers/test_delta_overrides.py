"""A subclass of a delta mixer with methods of its own is followed, though a kernel does what they did before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_arch.ops.norm import l2_norm
from tests.suite.models import perturbed_model, token_ids


def with_method(name: str, method: str, function: Any) -> list[torch.Tensor]:
    """Logits of a model, and those after its mixers have got a method of their own."""
    model, ids = perturbed_model(name).eval(), token_ids(1)
    found = []
    for changed in (False, True):
        if changed:
            for layer in model.model.layers:
                layer.mixer.__class__ = type("Mine", (type(layer.mixer),), {method: function})
        with torch.no_grad():
            found.append(model(ids, use_cache=False).logits)
    return found


@pytest.mark.parametrize("name", ["gated_delta_net", "kda"])
def test_heads_of_ones_own(name: str) -> None:
    def same(self: Any, *given: Any) -> Any:
        q, k, v = self.plain_heads(*given)
        return l2_norm(q), l2_norm(k), v

    def other(self: Any, *given: Any) -> Any:
        q, k, v = same(self, *given)
        return q, 0.5 * k, v

    torch.testing.assert_close(*with_method(name, "heads", same), atol=1e-5, rtol=1e-5)
    before, after = with_method(name, "heads", other)
    assert (before - after).abs().max() > 1e-3


def test_written_keys_of_ones_own() -> None:
    torch.testing.assert_close(
        *with_method("kda", "written_key", lambda self, x, k, layout, state: 1.0 * k), atol=1e-5, rtol=1e-5
    )
    before, after = with_method("kda", "written_key", lambda self, x, k, layout, state: 0.5 * k)
    assert (before - after).abs().max() > 1e-3
