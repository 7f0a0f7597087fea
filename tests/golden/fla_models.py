"""Whole models around the layers of `fla_formulas.py`, and the families whose body is not the usual block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden import fla_formulas, fla_linear_formulas
from tests.golden.fla_formulas import (
    Part,
    attend,
    causal,
    gated_deltanet,
    groups,
    linear_recurrence,
    mlp,
    rms,
    rope,
    rotate,
    silu,
    transformer,
)

Sublayer = Callable[[Tensor], Tensor]


class Stream:
    """The residual sum, or attention over the outputs of earlier sublayers (`attnres_block_size`)."""

    def __init__(self, model: Part, x: Tensor, eps: float):
        self.size, self.x, self.eps = model.get("attnres_block_size"), x, eps
        self.sources: list[Tensor] = []
        self.count = 0

    def mixed(self, part: Part, name: str) -> Tensor:
        if self.size is None:
            return self.x
        query, weight = part[f"{name}_proj.weight"], part[f"{name}_norm.weight"]
        if self.count == 0:
            return self.x
        every = torch.stack([*self.sources, self.x])
        share = (rms(every, weight, self.eps) * query.view(-1)).sum(-1, keepdim=True).softmax(0)
        return (share * every).sum(0)

    def add(self, out: Tensor) -> None:
        if self.size is None:
            self.x = self.x + out
        elif self.count % self.size == 0:
            self.sources.append(self.x)
            self.x = out
        else:
            self.x = self.x + out
        self.count += 1


def standard(model: Part, x: Tensor, layer: Callable[[Part, Tensor], Tensor]) -> Tensor:
    eps = model.get("norm_eps", 1e-6)
    stream = Stream(model, x, eps)
    hybrid = model.get("attn") or []
    attention = {
        index: group for group in ([hybrid] if isinstance(hybrid, dict) else hybrid) for index in group["layers"]
    }
    for index in range(model.options["num_hidden_layers"]):
        block = model.part(f"model.layers.{index}.")
        own = block.part("attn.", attention.get(index))
        block_of(
            block,
            stream,
            (lambda h, own=own: transformer(own, h)) if index in attention else (lambda h, own=own: layer(own, h)),
            eps,
        )
    return rms(stream.mixed(model.part("model."), "res"), model["model.norm.weight"], eps)


def block_of(block: Part, stream: Stream, mixer: Sublayer, eps: float, mixer_norm: str = "attn_norm") -> None:
    stream.add(mixer(rms(stream.mixed(block, "attn_res"), block[f"{mixer_norm}.weight"], eps)))
    stream.add(mlp(block.part("mlp."), rms(stream.mixed(block, "mlp_res"), block["mlp_norm.weight"], eps)))


def mamba3_layer(part: Part, x: Tensor) -> Tensor:
    P, N, G = part.get("head_dim", 64), part.get("state_size", 128), part.get("n_groups", 1)
    mimo = part.get("is_mimo", False)
    R, inner = part.get("mimo_rank", 4) if mimo else 1, int(part.get("expand", 2) * x.shape[-1])
    H, pairs = inner // P, int(N * part.get("rope_fraction", 0.5)) // 2
    bias = part.get("use_bias", False)
    sizes = [inner, inner, N * G * R, N * G * R, H, H, H, pairs]
    z, xs, B, C, dd_dt, dd_A, trap, angles = part.linear(x, "in_proj", bias=bias).split(sizes, -1)
    dt = F.softplus(dd_dt + part["dt_bias"])
    A = -torch.maximum(F.softplus(dd_A), torch.tensor(part.get("A_floor", 1e-4), dtype=x.dtype))
    alpha, lam = (A * dt).exp(), trap.sigmoid()
    eps = part.get("norm_eps", 1e-5)

    def heads(y: Tensor, name: str) -> Tensor:
        """[B, T, R, H, N]"""
        y = rms(y.unflatten(-1, (R, G, N)), part[f"{name}_norm.weight"], eps)
        return groups(y, H, 3) + part[f"{name}_bias"].transpose(0, 1)

    theta = (dt.unsqueeze(-1) * math.pi * angles.tanh().unsqueeze(2)).cumsum(1).unsqueeze(2)
    B, C = (rotate(heads(y, name), theta, adjacent=not mimo) for y, name in ((B, "B"), (C, "C")))
    xs, z = xs.unflatten(-1, (H, P)), z.unflatten(-1, (H, P))

    def ranks(y: Tensor, name: str) -> Tensor:
        return y.unsqueeze(2) * part[name].transpose(0, 1) if mimo else y.unsqueeze(2)

    xr, zr = ranks(xs, "mimo_x"), ranks(z, "mimo_z")
    state, out = x.new_zeros(len(x), H, N, P), []
    write = torch.einsum("btrhn,btrhp->bthnp", B, xr)
    for t in range(x.shape[1]):
        a, step, share = (y[:, t, :, None, None] for y in (alpha, dt, lam))
        before = (1 - share) * step * a * write[:, t - 1] if t else 0
        state = a * state + before + share * step * write[:, t]
        y = torch.einsum("bhnp,brhn->brhp", state, C[:, t]) + part["D"][:, None] * xr[:, t]
        if part.get("is_outproj_norm", False):
            y = rms(y, part["norm.weight"].view(H, P), eps)
        y = y * silu(zr[:, t])
        out.append((y * part["mimo_o"].transpose(0, 1)).sum(1) if mimo else y.squeeze(1))
    return part.linear(torch.stack(out, 1).flatten(2), "out_proj", bias=bias)


def mamba3(model: Part, x: Tensor) -> Tensor:
    eps = model.get("norm_eps", 1e-5)
    for index in range(model.options["num_hidden_layers"]):
        block = model.part(f"backbone.layers.{index}.")
        x = x + mamba3_layer(block.part("mixer."), rms(x, block["norm.weight"], eps))
    return rms(x, model["backbone.norm_f.weight"], eps)


def fenwick_level(query: int, key: int) -> int:
    if key == query:
        return 0
    top = query
    for bit in range(query.bit_length()):
        if query >> bit & 1:
            top = query >> bit << bit
            if top - 2**bit <= key < top:
                return bit + 1
    raise AssertionError((query, key))


def log_linear_layer(part: Part, x: Tensor) -> Tensor:
    P, N, G = part.get("head_dim", 64), part.get("state_size", 128), part.get("n_groups", 1)
    inner, length, bias = int(part.get("expand", 2) * x.shape[-1]), x.shape[1], part.get("use_bias", False)
    H, levels = inner // P, 15
    z, xbc, dt, dl = part.linear(x, "in_proj", bias=bias).split([inner, inner + 2 * G * N, H, H * levels], -1)
    xbc = silu(part.conv(xbc, "conv1d", bias=part.get("use_conv_bias", True)))
    xs, B, C = xbc.split([inner, G * N, G * N], -1)
    xs, B, C = xs.unflatten(-1, (H, P)), groups(B.unflatten(-1, (G, N)), H), groups(C.unflatten(-1, (G, N)), H)
    low, high = part.get("dt_limit", (0.0, math.inf))
    dt = F.softplus(dt + part["dt_bias"]).clamp(low, high)
    total = (-part["A_log"].exp() * dt).cumsum(1)
    lam = F.softplus(part["L"] * dl.unflatten(-1, (H, levels)))
    level = torch.tensor([[fenwick_level(t, s) if s <= t else 0 for s in range(length)] for t in range(length)])
    shares = lam.permute(0, 2, 1, 3).gather(-1, level.expand(len(x), H, -1, -1))
    decay = (total.mT.unsqueeze(-1) - total.mT.unsqueeze(-2)).masked_fill(~causal(length), -math.inf).exp()
    scores = torch.einsum("bthn,bshn->bhts", C, B) * decay * shares * dt.mT.unsqueeze(-2)
    out = torch.einsum("bhts,bshp->bthp", scores, xs)
    D = part["D"].view(H, P) if part.get("D_has_hdim", False) else part["D"][:, None]
    y, eps = (out + D * xs).flatten(2), part.get("norm_eps", 1e-5)
    first = part.get("norm_before_gate", False)
    y = y if first else y * silu(z)
    y = rms(y.unflatten(-1, (G, -1)), part["norm.weight"].view(G, -1), eps).flatten(2)
    return part.linear(y * silu(z) if first else y, "out_proj", bias=bias)


def log_linear_mamba2(model: Part, x: Tensor) -> Tensor:
    eps = model.get("norm_eps", 1e-5)
    stream = Stream(model, x, eps)
    for index in range(model.options["num_hidden_layers"]):
        block = model.part(f"backbone.layers.{index}.")
        block_of(block, stream, lambda h, b=block: log_linear_layer(b.part("mixer."), h), eps, "mixer_norm")
    return rms(stream.mixed(model.part("backbone."), "res"), model["backbone.norm_f.weight"], eps)


def rodimus_layer(part: Part, x: Tensor) -> Tensor:
    u, z = part.linear(x, "up_proj"), part.linear(x, "gate_proj")
    s = silu(part.conv(u, "short_conv", bias=True)) if part.get("use_short_conv", True) else u
    q, k = part.linear(s, "q_proj"), part.linear(s, "k_proj")
    v = part.low(u, "i_gate_proj", bias=True).sigmoid() * u
    g = F.softplus(part.linear(s, "g_gate_proj", bias=True))
    tau = part.linear(s, "tau_gate_proj", bias=True).sigmoid()
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=part.get("k_norm_eps", 1e-12)) * g**tau
    one = (y.unsqueeze(2) for y in (q, k, v, -g * tau))
    out = linear_recurrence(*one, q.shape[-1] ** -0.5).squeeze(2) + s * part["residual_weight"]
    out = rms(out * silu(z), part["activation_norm.weight"], part.get("norm_eps", 1e-5))
    return part.linear(out, "down_proj")


def shared_key_attention(part: Part, x: Tensor) -> Tensor:
    heads, bias = part.options["num_heads"], part.get("qkv_bias", False)
    q = part.linear(x, "q_proj", bias=bias).unflatten(-1, (heads, -1))
    k = part.linear(x, "k_proj", bias=bias).unsqueeze(2)
    v = part.linear(x, "v_proj", bias=bias).unflatten(-1, (heads, -1))
    if part.get("qk_norm", False):
        q, k = rms(q, part["q_norm.weight"], 1e-5), rms(k, part["k_norm.weight"], 1e-5)
    theta = part.get("rope_theta", 10000.0)
    out = attend(rope(q, theta), rope(k, theta), v, causal(x.shape[1], part.get("window_size")))
    return part.linear(out.flatten(2), "o_proj")


def rodimus(model: Part, x: Tensor) -> Tensor:
    eps = model.get("norm_eps", 1e-5)
    hybrid = model.get("attn") or {"layers": []}
    for index in range(model.options["num_hidden_layers"]):
        block = model.part(f"model.layers.{index}.")
        h = rms(x, block["mixer_norm.weight"], eps)
        own = block.part("mixer.", hybrid) if index in hybrid["layers"] else block.part("mixer.")
        x = x + (transformer if index in hybrid["layers"] else rodimus_layer)(own, h)
        if model.get("block_type", "rodimus_plus") == "rodimus_plus":
            h = rms(x, block["ska_attn_norm.weight"], eps)
            y = shared_key_attention(block.part("ska_attn.", model.options["ska_attn"]), h)
            x = x + mlp(block.part("mlp."), rms(x + y, block["mlp_norm.weight"], eps))
    return rms(x, model["model.norm.weight"], eps)


def gated_retention(part: Part, x: Tensor) -> Tensor:
    heads = part.options["num_heads"]
    turned = {
        "theta": part.get("rope_theta", 10000.0),
        "adjacent": True,
        "inclusive": part.get("rope_inv_freq") == "yoco",
    }
    q, k = (rope(part.linear(x, f"{name}_proj").unflatten(-1, (heads, -1)), **turned) for name in "qk")
    v = part.linear(x, "v_proj").unflatten(-1, (heads, -1))
    g = F.logsigmoid(part.linear(x, "gk_proj")).unsqueeze(-1) / part.get("gate_logit_normalizer", 16)
    out = rms(linear_recurrence(q, k, v, g, q.shape[-1] ** -0.5), 1.0, part.get("norm_eps", 1e-6)).flatten(2)
    return part.linear(out * silu(part.linear(x, "g_proj")), "o_proj")


def yoco(model: Part, x: Tensor) -> Tensor:
    own, across, eps = (
        model.options["self_decoder_attn"],
        model.options["cross_decoder_attn"],
        model.get("norm_eps", 1e-6),
    )
    count = model.get("num_self_decoder_layers", 10)
    kind = own.get("type", "gated_deltanet")
    below = {"gated_deltanet": gated_deltanet, "gated_retention": gated_retention, "swa": transformer}[kind]
    own = {**own, "norm_eps": eps, **({"num_kv_heads": own.get("num_v_heads")} if kind == "swa" else {})}
    stream = Stream(model, x * x.shape[-1] ** 0.5, eps)
    for index in range(count):
        block = model.part(f"model.self_layers.{index}.")
        block_of(block, stream, lambda h, b=block: below(b.part("attn.", own), h), eps)
    if count < model.options["num_hidden_layers"]:
        heads, bias = across["num_heads"], bool(across.get("qkv_bias"))
        kv_heads = across.get("num_kv_heads") or heads
        turned = {
            "theta": across.get("rope_theta") or 10000.0,
            "adjacent": True,
            "inclusive": across.get("rope_inv_freq") == "yoco",
        }
        build = model.part("model.shared_kv_builder.")
        h = rms(stream.mixed(model.part("model."), "shared_kv_res"), build["kv_norm.weight"], eps)
        k = rope(build.linear(h, "k_proj", bias=bias).unflatten(-1, (kv_heads, -1)), **turned)
        v = build.linear(h, "v_proj", bias=bias).unflatten(-1, (kv_heads, -1))

        def cross(part: Part, y: Tensor) -> Tensor:
            q = part.linear(y, "q_proj", bias=bias).unflatten(-1, (heads, -1))
            q = rms(q, part["q_norm.weight"], 1e-5) if across.get("qk_norm") else q
            return part.linear(attend(rope(q, **turned), k, v, causal(y.shape[1])).flatten(2), "o_proj")

        for index in range(model.options["num_hidden_layers"] - count):
            block = model.part(f"model.cross_layers.{index}.")
            block_of(block, stream, lambda h, b=block: cross(b.part("attn."), h), eps)
    return rms(stream.mixed(model.part("model."), "res"), model["model.norm.weight"], eps)


def logits(config: dict[str, Any], state: dict[str, Tensor], input_ids: Tensor) -> Tensor:
    """[B, T, vocab] of the model that a source's config and tensors make. Every tensor that the options call for must
    be there, under the source's name, and no other, so a converter that leaves one out or adds one fails."""
    used: set[str] = set()
    model, kind = Part(config, state, "", used), config["model_type"]
    embedding = "backbone.embeddings" if "backbone.embeddings.weight" in state else "model.embeddings"
    table = model[f"{embedding}.weight"]
    bodies = {"mamba3": mamba3, "log_linear_mamba2": log_linear_mamba2, "rodimus": rodimus, "yoco": yoco}
    x = table[input_ids]
    x = (
        bodies[kind](model, x)
        if kind in bodies
        else standard(model, x, getattr(fla_formulas, kind, None) or getattr(fla_linear_formulas, kind))
    )
    tied = config.get("tie_word_embeddings", kind == "rodimus")
    out = x @ (table if tied else model["lm_head.weight"]).T
    assert used == set(state), f"unread: {sorted(set(state) - used)[:5]}"
    return out
