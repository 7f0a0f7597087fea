"""The layers of flash-linear-attention's later models in fp64, token by token, from their formulas; nothing of the
package is used. `fla_models.py` puts models together from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

silu = F.silu
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
    "identity": lambda x: x,
}


def rms(x: Tensor, weight: Tensor | float = 1.0, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def unit(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def groups(x: Tensor, heads: int, dim: int = 2) -> Tensor:
    return x.repeat_interleave(heads // x.shape[dim], dim)


def rope(x: Tensor, theta: float = 10000.0, *, adjacent: bool = False, inclusive: bool = False) -> Tensor:
    """x [B, T, H, d], positions from 0."""
    half = x.shape[-1] // 2
    step = torch.arange(half, dtype=x.dtype)
    frequency = theta ** -(step / (half - 1) if inclusive else step / half)
    angle = (torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency)[:, None]
    return rotate(x, angle, adjacent=adjacent)


def rotate(x: Tensor, angle: Tensor, *, adjacent: bool) -> Tensor:
    """Pairs of the last axis by `angle` [..., pairs]; what is behind the pairs stays."""
    u, v = x.unflatten(-1, (-1, 2)).unbind(-1) if adjacent else x.chunk(2, -1)
    angle = F.pad(angle, (0, u.shape[-1] - angle.shape[-1]))
    turned = u * angle.cos() - v * angle.sin(), u * angle.sin() + v * angle.cos()
    return torch.stack(turned, -1).flatten(-2) if adjacent else torch.cat(turned, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """q [B, T, H, d], k and v of KV heads, allowed [.., T, S]; a query that may attend to nothing gets 0."""
    k, v = groups(k, q.shape[2]), groups(v, q.shape[2])
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5 + bias
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhts,bshd->bthd", weights, v)


def causal(length: int, window: int | None = None) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < (window or length + 1))


class Part:
    """Options and tensors of one module; `used` collects the names of all tensors that were read."""

    def __init__(self, options: dict[str, Any], state: dict[str, Tensor], prefix: str, used: set[str]):
        self.options, self.state, self.prefix, self.used = options, state, prefix, used

    def __getitem__(self, name: str) -> Tensor:
        self.used.add(self.prefix + name)
        return self.state[self.prefix + name].double()

    def part(self, prefix: str, options: dict[str, Any] | None = None) -> Part:
        return Part(self.options if options is None else options, self.state, self.prefix + prefix, self.used)

    def get(self, name: str, default: Any = None) -> Any:
        value = self.options.get(name, default)
        return default if value is None else value

    def linear(self, x: Tensor, name: str, *, bias: bool = False) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self[f"{name}.bias"] if bias else None)

    def low(self, x: Tensor, name: str, *, bias: bool = False) -> Tensor:
        return self.linear(self.linear(x, f"{name}.0"), f"{name}.1", bias=bias)

    def conv(self, x: Tensor, name: str, *, bias: bool = False) -> Tensor:
        weight = self[f"{name}.weight"]
        padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
        return F.conv1d(padded, weight, self[f"{name}.bias"] if bias else None, groups=len(weight)).mT

    def qkv(self, x: Tensor, name: str, activation: Callable[[Tensor], Tensor] = silu, default: bool = True) -> Tensor:
        """Projection, short convolution, activation."""
        out = self.linear(x, f"{name}_proj")
        return activation(self.conv(out, f"{name}_conv1d") if self.get("use_short_conv", default) else out)

    def decay(self, logits: Tensor, suffix: str = "") -> Tensor:
        """[B, T, heads, channels]."""
        rate = self[f"A_log{suffix}"].exp()
        return -rate[:, None] * F.softplus(logits + self[f"dt_bias{suffix}"]).unflatten(-1, (len(rate), -1))

    def beta(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() * (2 if self.get("allow_neg_eigval", False) else 1)

    def gated(self, x: Tensor, out: Tensor, gate: Callable[[Tensor], Tensor], *, low: bool = False) -> Tensor:
        """The normed and gated output of heads [B, T, H, V]; `gate` None leaves the gate out."""
        out = rms(out, self["o_norm.weight"], self.get("norm_eps", 1e-6))
        if low or self.get("use_gate", self.get("use_output_gate", True)):
            logits = self.low(x, "g_proj", bias=True) if low else self.linear(x, "g_proj")
            out = out * gate(logits).view_as(out)
        return self.linear(out.flatten(2), "o_proj")


def erase_and_write(q: Tensor, write: Tensor, v: Tensor, g: Tensor, erase: Tensor, *, before: bool = False) -> Tensor:
    """All [B, T, H, .]; `before`: what is erased is read from the state before its decay."""
    state, out = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[1]):
        decayed = g[:, t].exp().unsqueeze(-1) * state
        recalled = torch.einsum("bhkv,bhk->bhv", state if before else decayed, erase[:, t])
        state = decayed + write[:, t].unsqueeze(-1) * (v[:, t] - recalled).unsqueeze(-2)
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * q.shape[-1] ** -0.5)
    return torch.stack(out, 1)


def linear_recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Tensor:
    state, out = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[1]):
        state = g[:, t].exp().unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * scale)
    return torch.stack(out, 1)


def _sizes(part: Part) -> tuple[int, int]:
    """(QK heads, value heads)."""
    return part.options["num_heads"], part.get("num_v_heads", part.options["num_heads"])


def _delta_qkv(part: Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    heads, value_heads = _sizes(part)
    q, k = (part.qkv(x, name).unflatten(-1, (heads, -1)) for name in "qk")
    return q, k, part.qkv(x, "v").unflatten(-1, (value_heads, -1))


def kda(part: Part, x: Tensor, squash: bool = False) -> Tensor:
    (_, value_heads), (q, k, v) = _sizes(part), _delta_qkv(part, x)
    q, k = groups(unit(q), value_heads), groups(unit(k), value_heads)
    logits, bound = part.low(x, "f_proj"), part.get("lower_bound")
    if bound is None:
        g = part.decay(logits)
    else:
        rate = part["A_log"].exp()[:, None]
        g = bound * (rate * (logits + part["dt_bias"]).unflatten(-1, (value_heads, -1))).sigmoid()
    beta = groups(part.beta(part.linear(x, "b_proj")), value_heads).unsqueeze(-1)
    written = preconditioned(part, k, part.linear(x, "a_proj"), part.linear(x, "b_atk_proj")) if squash else k
    return part.gated(x, erase_and_write(q, beta * written, v, g, k), torch.sigmoid, low=True)


def preconditioned(part: Part, k: Tensor, rate: Tensor, strength: Tensor) -> Tensor:
    ga, ba = part.decay(rate, "_atk"), strength.sigmoid().unsqueeze(-1)
    size, sizes = torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        size = ga[:, t].exp() * size + ba[:, t] * k[:, t].square()
        sizes.append(size)
    scale = part["log_atk_scale"][:, None]
    r = (torch.stack(sizes, 1) + part.get("squash_eps", 1e-6)).log() - scale
    return k * part.get("squash_x", 1.5) ** (-r / (1 + r.abs()))


def precond_kda(part: Part, x: Tensor) -> Tensor:
    return kda(part, x, squash=True)


def precond_gated_deltanet(part: Part, x: Tensor) -> Tensor:
    (_, heads), (q, k, v) = _sizes(part), _delta_qkv(part, x)
    q, k = unit(q), unit(k)
    written = groups(preconditioned(part, k, part.linear(x, "a_atk_proj"), part.linear(x, "b_atk_proj")), heads)
    q, k, beta = groups(q, heads), groups(k, heads), part.beta(part.linear(x, "b_proj")).unsqueeze(-1)
    return part.gated(x, erase_and_write(q, beta * written, v, part.decay(part.linear(x, "a_proj")), k), silu)


def gated_deltaproduct(part: Part, x: Tensor) -> Tensor:
    heads, steps = part.options["num_heads"], part.get("num_householder", 1)
    q = unit(part.qkv(x, "q").unflatten(-1, (heads, -1)))
    k, v = (part.qkv(x, name).unflatten(-1, (steps, heads, -1)) for name in "kv")
    k, beta = unit(k), part.beta(part.linear(x, "b_proj")).unflatten(-1, (steps, heads))
    g = part.decay(part.linear(x, "a_proj")) if part.get("use_forget_gate", False) else torch.zeros_like(q[..., :1])
    state, out = q.new_zeros(*q.shape[::2], q.shape[-1], v.shape[-1]), []
    for t in range(q.shape[1]):
        state = g[:, t].exp().unsqueeze(-1) * state
        for j in range(steps):
            error = v[:, t, j] - torch.einsum("bhkv,bhk->bhv", state, k[:, t, j])
            state = state + (beta[:, t, j, :, None] * k[:, t, j]).unsqueeze(-1) * error.unsqueeze(-2)
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * q.shape[-1] ** -0.5)
    return part.gated(x, torch.stack(out, 1), silu)


def comba(part: Part, x: Tensor) -> Tensor:
    (_, heads), (q, k, v) = _sizes(part), _delta_qkv(part, x)
    p = part["decay"].sigmoid()[:, None] * k
    q, k, p = (groups(unit(each), heads) for each in (q - part["D"][:, None] * p, k, p))
    beta, g = part.linear(x, "b_proj").sigmoid().unsqueeze(-1), part.decay(part.linear(x, "a_proj"))
    return part.gated(x, erase_and_write(q, k, beta * v, g, beta * p, before=True), torch.sigmoid)


def gdn2(part: Part, x: Tensor) -> Tensor:
    (_, heads), (q, k, v) = _sizes(part), _delta_qkv(part, x)
    q, k, g = unit(q), unit(k), part.decay(part.low(x, "f_proj"))
    erase = part.beta(part.linear(x, "b_proj")).view_as(k) * k
    q, k, g, erase = (groups(each, heads) for each in (q, k, g, erase))
    v = part.linear(x, "w_proj").sigmoid().view_as(v) * v
    return part.gated(x, erase_and_write(q, k, v, g, erase), torch.sigmoid, low=True)


def gated_deltanet(part: Part, x: Tensor) -> Tensor:
    (_, heads), (q, k, v) = _sizes(part), _delta_qkv(part, x)
    q, k, beta = groups(unit(q), heads), groups(unit(k), heads), part.beta(part.linear(x, "b_proj")).unsqueeze(-1)
    return part.gated(x, erase_and_write(q, beta * k, v, part.decay(part.linear(x, "a_proj")), k), silu)


def momentum_deltanet(part: Part, x: Tensor) -> Tensor:
    heads, value_heads = _sizes(part)
    activation = ACTIVATIONS[part.get("qk_activation", "silu")]
    q, k = (part.qkv(x, name, activation).unflatten(-1, (heads, -1)) for name in "qk")
    v = part.qkv(x, "v").unflatten(-1, (value_heads, -1))
    if part.get("use_output_correction", True):
        q = q - part["D_log"].exp()[:, None] * k
    norm = unit if part.get("qk_norm", "l2") == "l2" else lambda y: y / y.abs().sum(-1, keepdim=True).clamp(min=1e-6)
    q, k = groups(norm(q), value_heads), groups(norm(k), value_heads)

    def rate(name: str, log: str, bias: str) -> Tensor:
        return -groups(part[log].exp(), value_heads, 0) * F.softplus(part.linear(x, name) + part[bias])

    log_mu, log_a0 = rate("m_proj", "Mu_log", "mu_bias"), rate("a_proj", "A_log", "dt_bias")
    bound = part.options.get("min_log_mu", -2.0)
    log_mu = log_mu if bound is None else log_mu.clamp(min=bound)
    tau = (x.shape[-1] / part.get("tau_factor", 1)) ** 0.5
    eta = 1 + torch.tanh(part.linear(x, "e_proj") / tau)
    theta = torch.atan(eta * groups(part["log_factor"].exp(), value_heads, 0))
    beta, a = theta.sin().square() * part.beta(part.linear(x, "b_proj")), theta.cos().square() * log_a0.exp()
    mu = log_mu.exp()
    state, out = x.new_zeros(len(x), value_heads, k.shape[-1], v.shape[-1]), []
    momentum = state
    for t in range(x.shape[1]):
        key = k[:, t] * (a[:, t, :, None] if part.get("use_p_times_alpha", True) else 1)
        u = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, key)
        push = (eta[:, t, :, None] * k[:, t]).unsqueeze(-1) * u.unsqueeze(-2)
        momentum = mu[:, t, :, None, None] * momentum + push
        state = a[:, t, :, None, None] * state + beta[:, t, :, None, None] * momentum
        out.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * k.shape[-1] ** -0.5)
    return part.gated(x, torch.stack(out, 1), silu)


def mesa_net(part: Part, x: Tensor) -> Tensor:
    heads = part.options["num_heads"]
    q, k = (unit(silu(part.conv(part.linear(x, f"{n}_proj"), f"{n}_conv1d")).unflatten(-1, (heads, -1))) for n in "qk")
    v = part.linear(x, "v_proj").unflatten(-1, (heads, -1))
    beta, g = part.linear(x, "b_proj", bias=True).sigmoid(), F.logsigmoid(part.linear(x, "a_proj", bias=True))
    lam = F.softplus(part["lambda_params"]).unflatten(0, (heads, -1)) + part.get("lambda_lower_bound", 0.25)
    keys = x.new_zeros(len(x), heads, k.shape[-1], k.shape[-1])
    state, out = x.new_zeros(len(x), heads, k.shape[-1], v.shape[-1]), []
    for t in range(x.shape[1]):
        write, decay = (beta[:, t, :, None] * k[:, t]).unsqueeze(-1), g[:, t].exp()[..., None, None]
        keys = decay * keys + write * k[:, t].unsqueeze(-2)
        state = decay * state + write * v[:, t].unsqueeze(-2)
        solved = torch.linalg.solve(keys + torch.diag_embed(lam), q[:, t].unsqueeze(-1))
        out.append((state.mT @ solved).squeeze(-1))
    options = {**part.options, "use_output_gate": part.get("use_output_gate", False)}
    return part.part("", options).gated(x, torch.stack(out, 1), silu)


def lightnet(part: Part, x: Tensor) -> Tensor:
    heads = part.get("num_heads") or x.shape[-1] // part.get("expand_ratio", 128)
    q, k, v = (part.qkv(x, name, lambda y: y, False).unflatten(-1, (heads, -1)) for name in "qkv")
    total = torch.stack([k[:, : t + 1].logsumexp(1) for t in range(x.shape[1])], 1)
    g = torch.cat([torch.zeros_like(total[:, :1]), total[:, :-1] - total[:, 1:]], 1)
    out = linear_recurrence(silu(q), (k - total).exp(), v, g, k.shape[-1] ** -0.5).flatten(2)
    out = rms(out, part["g_norm.weight"] if part.get("elementwise_affine", True) else 1.0, 1e-6)
    return part.linear(out * silu(part.low(x, "g_proj")), "o_proj")


def _softmax_heads(part: Part, x: Tensor, norm: str, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v by head; `norm` of q and k: of each head with a weight for each of its channels, or one for all heads."""
    heads = part.options["num_heads"]
    counts, bias = {"q": heads, "k": part.get("num_kv_heads", heads), "v": part.get("num_kv_heads", heads)}, False
    bias = part.get("qkv_bias", False)
    q, k, v = (part.linear(x, f"{n}_proj", bias=bias).unflatten(-1, (counts[n], -1)) for n in "qkv")
    if part.get("qk_norm", False):
        shape = (-1, q.shape[-1]) if norm == "all" else (q.shape[-1],)
        q, k = rms(q, part["q_norm.weight"].view(shape), eps), rms(k, part["k_norm.weight"].view(shape), eps)
    return q, k, v


def transformer(part: Part, x: Tensor) -> Tensor:
    q, k, v = _softmax_heads(part, x, "head")
    theta = part.get("rope_theta", 10000.0)
    out = attend(rope(q, theta), rope(k, theta), v, causal(x.shape[1], part.get("window_size")))
    return part.linear(out.flatten(2), "o_proj")


def forgetting_transformer(part: Part, x: Tensor) -> Tensor:
    q, k, v = _softmax_heads(part, x, "all")
    total = F.logsigmoid(part.linear(x, "f_proj", bias=True)).cumsum(1).mT
    out = attend(q, k, v, causal(x.shape[1]), total.unsqueeze(-1) - total.unsqueeze(-2)).flatten(2)
    if part.get("use_output_gate", False):
        out = part.linear(x, "g_proj").sigmoid() * out
    return part.linear(out, "o_proj")


def path_attn(part: Part, x: Tensor) -> Tensor:
    heads, length = part.options["num_heads"], x.shape[1]
    kv_heads = part.get("num_kv_heads", heads)
    q = part.linear(x, "q_proj").unflatten(-1, (heads, -1))
    k, v = (part.linear(x, f"{name}_proj").unflatten(-1, (kv_heads, -1)) for name in "kv")
    w = part.low(x, "w_proj") if part.get("use_low_rank_w", True) else part.linear(x, "w_proj")
    w = silu(part.conv(w, "w_conv1d")) if part.get("use_w_shortconv", True) else w
    w, b = unit(w.unflatten(-1, (kv_heads, -1))), 2 * part.linear(x, "bt_proj", bias=True).sigmoid()
    total = x.new_zeros(len(x), heads, length)
    if part.get("use_forget_gate", False):
        total = F.logsigmoid(part.linear(x, "g_proj", bias=True)).cumsum(1).mT
    keys, out = k[:, :0], []
    for t in range(length):
        reflect = (keys * w[:, t : t + 1]).sum(-1, keepdim=True) * w[:, t : t + 1]
        keys = torch.cat([keys - b[:, t, :, None].unsqueeze(1) * reflect, k[:, t : t + 1]], 1)
        forgotten = (total[..., t : t + 1] - total[..., : t + 1]).unsqueeze(2) * q.shape[-1] ** -0.5
        out.append(attend(q[:, t : t + 1], keys, v[:, : t + 1], torch.tensor(True), forgotten))
    return part.linear(torch.cat(out, 1).flatten(2), "o_proj")


def stickbreaking_attn(part: Part, x: Tensor) -> Tensor:
    q, k, v = _softmax_heads(part, x, "head", part.get("norm_eps", 1e-6))
    k, v, current = groups(k, q.shape[2]), groups(v, q.shape[2]), part.get("attend_current", False)
    z = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    weights = torch.zeros_like(z)
    for i in range(x.shape[1]):
        left = torch.ones_like(z[..., 0, 0])
        for j in range(i if current else i - 1, -1, -1):
            weights[..., i, j] = z[..., i, j].sigmoid() * left
            left = left * (1 - z[..., i, j].sigmoid())
    return part.linear(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2), "o_proj")


def nsa(part: Part, x: Tensor) -> Tensor:
    q, k, v = _softmax_heads(part, x, "head")
    theta, size, length = part.get("rope_theta", 10000.0), part.get("block_size", 64), x.shape[1]
    q, k = rope(q, theta), rope(k, theta)
    heads, kv_heads = q.shape[2], k.shape[2]
    g = part.linear(x, "g_proj").sigmoid().unflatten(-1, (heads, 3))
    blocks, t = length // size, torch.arange(length)
    means = [y[:, : blocks * size].unflatten(1, (blocks, size)).mean(2) for y in (k, v)]
    done = (torch.arange(blocks) + 1) * size - 1 <= t[:, None]
    compressed = attend(q, *means, done)
    scores = torch.einsum("bthd,bmhd->bhtm", q, groups(means[0], heads)) * q.shape[-1] ** -0.5
    importance = scores.masked_fill(~done, -math.inf).softmax(-1).nan_to_num(0.0)
    count = -(-length // size)
    importance = F.pad(importance.unflatten(1, (kv_heads, -1)).sum(2), (0, count - blocks))
    own, block = t[:, None] // size, torch.arange(count)
    forced = (block == 0) | (block == own) | (block == own - 1)
    allowed = (forced | F.pad(done, (0, count - blocks))) & (block <= own)
    importance = importance.masked_fill(forced, math.inf).masked_fill(~allowed, -math.inf)
    chosen = torch.zeros_like(importance, dtype=torch.bool)
    best = importance.topk(min(part.get("block_counts", 16), count), -1).indices
    chosen.scatter_(-1, best, True)
    tokens = (chosen & allowed).repeat_interleave(size, -1)[..., :length] & causal(length)
    selected = attend(q, k, v, tokens.repeat_interleave(heads // kv_heads, 1))
    local = attend(q, k, v, causal(length, part.get("window_size", 512)))
    out = sum(g[..., n, None] * each for n, each in enumerate((compressed, selected, local)))
    return part.linear(out.flatten(2), "o_proj")


def moba(part: Part, x: Tensor) -> Tensor:
    q, k, v = _softmax_heads(part, x, "head")
    theta, size, length = part.get("rope_theta", 10000.0), part.get("moba_chunk_size", 256), x.shape[1]
    q, k = rope(q, theta), rope(k, theta)
    heads, count, t = q.shape[2], -(-length // size), torch.arange(length)
    full = length // size
    means = groups(k[:, : full * size].unflatten(1, (full, size)).mean(2), heads)
    score = F.pad(torch.einsum("bthd,bmhd->bhtm", q, means), (0, count - full), value=-math.inf)
    past = (torch.arange(count) + 1) * size <= t[:, None]
    score = score.masked_fill(~past, -math.inf)
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen.scatter_(-1, score.topk(min(part.get("moba_topk", 4) - 1, count), -1).indices, True)
    chosen = chosen & past | (torch.arange(count) == t[:, None] // size)
    out = attend(q, k, v, chosen.repeat_interleave(size, -1)[..., :length] & causal(length))
    out = rms(out, part["o_norm.weight"], 1e-6)
    if part.get("use_output_gate", False):
        out = out * part.low(x, "g_proj").sigmoid().view_as(out)
    return part.linear(out.flatten(2), "o_proj")


def mlp(part: Part, x: Tensor) -> Tensor:
    return part.linear(silu(part.linear(x, "gate_proj")) * part.linear(x, "up_proj"), "down_proj")
