"""The layers of flash-linear-attention's earlier families, as in `fla_formulas.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.fla_formulas import (
    ACTIVATIONS,
    Part,
    erase_and_write,
    groups,
    linear_recurrence,
    rms,
    rope,
    silu,
    unit,
)


def _grouped_qkv(part: Part, x: Tensor, conv: bool) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v by head, keys and values repeated for the heads that they serve."""
    heads = part.options["num_heads"]
    kv_heads = part.get("num_kv_heads", heads)
    q, k, v = (
        silu(part.conv(y, f"{name}_conv1d")) if conv else y for name in "qkv" for y in [part.linear(x, f"{name}_proj")]
    )
    q, k, v = (y.unflatten(-1, (count, -1)) for y, count in ((q, heads), (k, kv_heads), (v, kv_heads)))
    chosen = ACTIVATIONS[part.get("feature_map", "identity")]
    return chosen(q), groups(chosen(k), heads), groups(v, heads)


def _normed(part: Part, x: Tensor, out: Tensor) -> Tensor:
    gated = part.get("use_output_gate", True)
    fused = gated and part.get("fuse_norm", True)
    name = "g_norm_swish_gate.weight" if fused else "g_norm.weight"
    out = rms(out, part[name] if part.get("elementwise_affine", True) else 1.0, part.get("norm_eps", 1e-6))
    out = out * silu(part.linear(x, "g_proj")).view_as(out) if gated else out
    return part.linear(out.flatten(2), "o_proj")


def gla(part: Part, x: Tensor) -> Tensor:
    q, k, v = _grouped_qkv(part, x, part.get("use_short_conv", False))
    g = F.logsigmoid(F.linear(part.linear(x, "gk_proj.0"), part["gk_proj.1.weight"], part["gk_proj.1.bias"])) / 16
    least = part.get("clamp_min")
    g = g if least is None else g.clamp(min=least)
    g = groups(g.unflatten(-1, (part.get("num_kv_heads", part.options["num_heads"]), -1)), q.shape[2])
    return _normed(part, x, linear_recurrence(q, k, v, g, q.shape[-1] ** -0.5))


def retnet(part: Part, x: Tensor) -> Tensor:
    q, k, v = _grouped_qkv(part, x, False)
    g = (1 - 2.0 ** (-5 - torch.arange(q.shape[2], dtype=x.dtype))).log()[:, None].expand(*q.shape[:3], 1)
    return _normed(part, x, linear_recurrence(rope(q), rope(k), v, g, q.shape[-1] ** -0.5))


def delta_net(part: Part, x: Tensor) -> Tensor:
    heads, activation = part.options["num_heads"], ACTIVATIONS[part.get("qk_activation", "silu")]
    q, k = (part.qkv(x, name, activation).unflatten(-1, (heads, -1)) for name in "qk")
    v = part.qkv(x, "v").unflatten(-1, (heads, -1))
    norm = unit if part.get("qk_norm", "l2") == "l2" else lambda y: y / y.abs().sum(-1, keepdim=True).clamp(min=1e-6)
    q, k, beta = norm(q), norm(k), torch.ones_like(k[..., :1])
    if part.get("use_beta", True):
        beta = part.beta(part.linear(x, "b_proj")).unsqueeze(-1)
    options = {**part.options, "use_gate": part.get("use_gate", False)}
    return part.part("", options).gated(x, erase_and_write(q, beta * k, v, torch.zeros_like(beta), k), silu)


def hgrn(part: Part, x: Tensor) -> Tensor:
    index = int(part.prefix.split(".")[2])
    i, f = part.linear(x, "i_proj"), part.linear(x, "f_proj")
    if part.get("use_short_conv", False):
        i, f = part.conv(i, "i_conv1d"), part.conv(f, "f_conv1d")
    f = f.sigmoid()
    if part.get("use_lower_bound", True):
        shares = Part({}, part.state, "", part.used)["model.lower_bounds"].softmax(0)
        bound = (shares.cumsum(0) - shares[0])[index]
        f = bound + (1 - bound) * f if index else f
    i, state, out = silu(i) * (1 - f), torch.zeros_like(f[:, 0]), []
    for t in range(x.shape[1]):
        state = f[:, t] * state + i[:, t]
        out.append(state)
    weight = part["g_norm.weight"] if part.get("elementwise_affine", True) else 1.0
    normed = rms(torch.stack(out, 1), weight, part.get("norm_eps", 1e-6))
    return part.linear(normed * silu(part.linear(x, "g_proj")), "o_proj")


def abc(part: Part, x: Tensor) -> Tensor:
    heads = part.options["num_heads"]
    q, k, v = (part.linear(x, f"{name}_proj") for name in "qkv")
    if part.get("use_short_conv", False):
        q, k, v = (silu(part.conv(y, f"{name}_conv1d")) for y, name in ((q, "q"), (k, "k"), (v, "v")))
    q, k, v = (y.unflatten(-1, (heads, -1)) for y in (q, k, v))
    q, k = (rope(q), rope(k)) if part.get("use_rope", True) else (q, k)
    low, high = part.get("clamp_min", -32), part.get("clamp_max", 32)
    s, out = part.linear(x, "s_proj").unflatten(-1, (heads, -1)).clamp(low, high), []
    for t in range(x.shape[1]):
        w = s[:, : t + 1].softmax(1)
        keys, values = (torch.einsum("bshm,bshd->bhmd", w, y[:, : t + 1]) for y in (k, v))
        read = (torch.einsum("bhmd,bhd->bhm", keys, q[:, t]) / math.sqrt(q.shape[-1])).softmax(-1)
        out.append(torch.einsum("bhm,bhmd->bhd", read, values))
    return _normed(part.part("", {**part.options, "fuse_norm": False}), x, torch.stack(out, 1))
