"""S4D against its formulas: the recurrence, the convolution, and how A starts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.mixers.layers import assert_layer, mixer_and_input, weights


def as_complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())


def kernel(w: dict[str, Tensor], length: int) -> Tensor:
    """K_l = 2 Re sum_n C_n b_n a_n^l (zero-order hold), [D, length]; without the 2 for a real system."""
    A: Tensor = -torch.exp(w["log_A_real"])
    real = "A_imag" not in w
    if not real:
        A = torch.complex(A, w["A_imag"])
    B = torch.ones_like(A) if "B" not in w else w["B"] if real else as_complex(w["B"])
    C = w["C"] if real else as_complex(w["C"])
    a = torch.exp(torch.exp(w["log_dt"])[:, None] * A)
    b = (a - 1) / A * B
    powers = a[..., None] ** torch.arange(length, dtype=torch.float64)
    return torch.einsum("dn,dnl->dl", C * b, powers) if real else 2 * torch.einsum("dn,dnl->dl", C * b, powers).real


def s4d(w: dict[str, Tensor], x: Tensor, use_glu: bool) -> Tensor:
    """The layer as a convolution with the system's impulse response."""
    length = x.shape[1]
    response = kernel(w, length)
    y = torch.stack([(response[:, : t + 1].flip(-1).T * x[:, : t + 1]).sum(1) for t in range(length)], 1)
    out = F.gelu(y + w["D"] * x) @ w["out_proj.weight"].T + w["out_proj.bias"]
    if not use_glu:
        return out
    value, gate = out.chunk(2, -1)
    return value * torch.sigmoid(gate)


@pytest.mark.parametrize("kind", ["lin", "inv", "real"])
@pytest.mark.parametrize("learn_input", [False, True])
@pytest.mark.parametrize("use_glu", [False, True])
def test_layer_equals_its_formulas(kind: str, learn_input: bool, use_glu: bool) -> None:
    options = {"kind": kind, "learn_input": learn_input, "use_glu": use_glu, "state_size": 6}
    mixer, x = mixer_and_input("ssm", length=40, mixer={"type": "ssm", **options})
    assert_layer(mixer, x, s4d(weights(mixer), x.double(), use_glu))


@pytest.mark.parametrize("kind", ["lin", "inv", "real"])
def test_a_starts_as_published(kind: str) -> None:
    config = hf_arch.tiny_config("ssm", mixer={"type": "ssm", "kind": kind, "state_size": 8, "learn_input": True})
    mixer = AutoModelForCausalLM.from_config(config).model.layers[1].mixer
    n = torch.arange(8 if kind == "real" else 4)
    real = {"real": -(n + 1.0)}.get(kind, torch.full((4,), -0.5))
    torch.testing.assert_close(-mixer.log_A_real.exp(), real.expand(32, -1))
    if kind != "real":
        imaginary = math.pi * n if kind == "lin" else 8 / math.pi * (8 / (2 * n + 1) - 1)
        torch.testing.assert_close(mixer.A_imag, imaginary.expand(32, -1))
        assert mixer.B[..., 0].eq(1).all() and mixer.B[..., 1].eq(0).all()
    else:
        assert mixer.A_imag is None and mixer.B.eq(1).all()
    assert math.log(1e-3) <= mixer.log_dt.min() and mixer.log_dt.max() <= math.log(1e-1)
    assert mixer.log_dt.std() > 0.5
    power = mixer.C.square().sum() / (mixer.C.numel() if kind == "real" else mixer.C.numel() / 2)
    assert power.item() == pytest.approx(1.0, rel=0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 5}, "state_size 5 is not allowed; conjugate pairs need an even number, nearest valid: 6"),
        ({"kind": "linn"}, "kind: 'linn' is not known; nearest: 'lin'"),
        ({"dt_min": 0.5}, "dt_min 0.5 is not allowed"),
    ],
)
def test_mistakes_name_the_option(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("ssm", mixer={"type": "ssm", **options})
