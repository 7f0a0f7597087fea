"""Residual streams beyond `add` and `parallel`: each equals its paper's formula, written out stream by stream, costs
what torch counts, starts as its paper says, and is described."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextGatedResidual

import hf_arch
from hf_arch.core.errors import ConfigError
from tests.modeling.test_streams import IDS, STREAMS, model_of, run

LAYERS = {"num_hidden_layers": 5}


def branches(model: Any) -> list[tuple[str, Any, Any]]:
    """(site, its layer, the sublayer with its norm) in the order in which they run."""
    made = []
    for layer in model.model.layers:
        made.append(("mixer", layer, lambda x, layer=layer: run(layer.mixer, layer.mixer_norm(x))))
        made.append(("ffn", layer, lambda x, layer=layer: run(layer.ffn, layer.ffn_norm(x))))
    return made


def check(model: Any, last: Tensor) -> None:
    torch.testing.assert_close(model(IDS).logits, model.lm_head(model.model.norm(last)), rtol=1e-4, atol=1e-5)


def start_of(model: Any) -> Tensor:
    return model.model.embed_tokens(IDS)


@pytest.mark.sampled(7)
@pytest.mark.parametrize("kind", ["scaled", "unet", "gate"])
@pytest.mark.parametrize("scale", ["none", "scalar", "vector"])
@pytest.mark.parametrize("x0", ["none", "identity"])
@pytest.mark.parametrize("backout", [None, 0.2])
def test_scaled_and_unet(kind: str, scale: str, x0: str, backout: float | None):
    own = {"type": "unet", "skip": "gate"} if kind == "gate" else {"type": kind}
    model = model_of({**own, "scale": scale, "x0": x0, "backout": backout}, **LAYERS)
    x = x_0 = start_of(model)
    skips, middle = [], None
    for index, layer in enumerate(model.model.layers):
        if kind != "scaled" and index >= 3:  # of five: 3 takes layer 1's, 4 takes layer 0's
            weight = layer.stream.skip_scale
            if kind == "gate":
                gate = torch.sigmoid(x_0[..., :16] @ layer.stream.skip_gate.weight[0])
                weight = torch.sigmoid(weight) * 2 * gate[..., None]
            x = x + weight * skips.pop()
        if x0 != "none":
            x = layer.stream.stream_scale * x + layer.stream.x0_scale * x_0
        mixer_scale, ffn_scale = (
            1.0 if scale == "none" else getattr(layer.stream, f"{site}_scale") for site in ("mixer", "ffn")
        )
        x = x + mixer_scale * run(layer.mixer, layer.mixer_norm(x))
        x = x + ffn_scale * run(layer.ffn, layer.ffn_norm(x))
        if index < 2:
            skips.append(x)
        if index == 2:
            middle = x
    check(model, x if backout is None else x - model.model.stream.backout * middle)


def test_gated():
    model = model_of({"type": "gated", "temperature": 0.5}, norm_position="sandwich")
    x = start_of(model)
    for layer in model.model.layers:
        for part, norm, post, gate in (
            (layer.mixer, layer.mixer_norm, layer.mixer_post_norm, layer.stream.mixer_gate),
            (layer.ffn, layer.ffn_norm, layer.ffn_post_norm, layer.stream.ffn_gate),
        ):
            beta = torch.sigmoid(gate / 0.5)
            x = torch.sqrt(1 - beta**2) * x + beta * post(run(part, norm(x)))
    check(model, x)


def test_gated_streams_are_those_of_transformers():
    """Each sublayer's gate is transformers' module, and the last one stands in place of the final norm."""
    model = model_of({"type": "gated_streams", "streams": 3, "rank": 5}, **LAYERS)
    sizes = {"hc_count": 3, "hc_lowrank": 5, "hidden_size": model.config.hidden_size}
    config = SimpleNamespace(**sizes, rms_norm_eps=model.config.norm_eps)

    def theirs(gate: Any) -> Any:
        module = Qwen4ExpTextGatedResidual(config, use_combine=gate.inject is not None)
        names = {"down": "input_mix_weight_down", "up": "input_mix_weight_up", "inject": "block_inject_weight"}
        state = {f"{names[name]}.weight": part.weight for name, part in gate.named_children()}
        module.load_state_dict({**state, "hc_norm.weight": gate.weight.flatten()})
        return module

    x = start_of(model).repeat(1, 1, 3)
    for layer in model.model.layers:
        assert layer.mixer_norm is None and layer.ffn_norm is None
        for site in ("mixer", "ffn"):
            read, before, factors = theirs(getattr(layer.stream, site))(x)
            out = run(getattr(layer, site), read)
            x = before + (factors.unsqueeze(-1) * out.unsqueeze(-2)).flatten(-2)
    last = theirs(model.model.stream.head)(x)
    torch.testing.assert_close(model(IDS).logits, model.lm_head(last), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_hyper_connections(dynamic: bool):
    n = 3
    model = model_of({"type": "hyper", "streams": n, "dynamic": dynamic})
    streams = [start_of(model)] * n
    for site, layer, sublayer in branches(model):
        own = getattr(layer.stream, site)
        alphas, betas = [], []
        for m, stream in enumerate(streams):
            alpha = own.static_alpha[m].expand(*stream.shape[:2], 1 + n)
            beta = own.static_beta[m].expand(stream.shape[:2])
            if dynamic:
                normed = F.layer_norm(stream, (stream.shape[-1],), own.norm.weight, own.norm.bias, 1e-6)
                alpha = alpha + own.alpha_scale * torch.tanh(normed @ own.alpha_weight.T)
                beta = beta + own.beta_scale * torch.tanh(normed @ own.beta_weight[0])
            alphas.append(alpha)
            betas.append(beta)
        y = sublayer(sum(alphas[m][..., :1] * streams[m] for m in range(n)))
        streams = [
            sum(alphas[m][..., 1 + j, None] * streams[m] for m in range(n)) + betas[j][..., None] * y for j in range(n)
        ]
    check(model, sum(streams))


def test_manifold_hyper_connections():
    n, eps, steps = 3, 1e-6, 4
    model = model_of({"type": "mhc", "streams": n, "iterations": steps})

    def logits(own: Any, streams: list[Tensor]) -> Tensor:
        flat = torch.cat(streams, -1)
        return (flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()) @ own.fn.T

    streams = [start_of(model)] * n
    for site, layer, sublayer in branches(model):
        own = getattr(layer.stream, site)
        z1, z2, z3 = logits(own, streams).split([n, n, n * n], -1)
        base1, base2, base3 = own.base.split([n, n, n * n])
        pre = torch.sigmoid(z1 * own.scale[0] + base1) + eps
        post = 2 * torch.sigmoid(z2 * own.scale[1] + base2)
        mix = torch.softmax((z3 * own.scale[2] + base3).unflatten(-1, (n, n)), -1) + eps
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
        for _ in range(steps - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + eps)
            mix = mix / (mix.sum(-2, keepdim=True) + eps)
        y = sublayer(sum(pre[..., m, None] * streams[m] for m in range(n)))
        streams = [post[..., j, None] * y + sum(mix[..., m, j, None] * streams[m] for m in range(n)) for j in range(n)]
    head = model.model.stream.head
    weights = torch.sigmoid(logits(head, streams) * head.scale + head.base) + eps
    check(model, sum(weights[..., m, None] * streams[m] for m in range(n)))


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_attention_residuals(block_size: int):
    model = model_of({"type": "attention_residual", "block_size": block_size}, **LAYERS)

    def mixed(own: Any, sources: list[Tensor]) -> Tensor:
        scores = [F.rms_norm(r, (r.shape[-1],), own.norm.weight, 1e-6) @ own.query[0] for r in sources]
        weights = torch.softmax(torch.stack(scores), 0)
        return sum(weight[..., None] * source for weight, source in zip(weights, sources, strict=True))

    finished: list[Tensor] = []
    part = start_of(model)
    for s, (site, layer, sublayer) in enumerate(branches(model)):
        y = sublayer(mixed(getattr(layer.stream, site), [*finished, part]))
        if s % block_size == 0:
            finished, part = [*finished, part], y
        else:
            part = part + y
    check(model, mixed(model.model.stream.head, [*finished, part]))


def same_at_start(stream: Any) -> tuple[Tensor, Tensor]:
    """Logits of a new model with this stream and of one with `add`, the other weights equal."""
    torch.manual_seed(0)
    sizes = {**LAYERS, "norm_eps": 1e-12}
    plain = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla", **sizes)).eval()
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("gla", stream=stream, **sizes)).eval()
    left = model.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    return model(IDS).logits, plain(IDS).logits


@pytest.mark.parametrize(
    "stream",
    [
        {"type": "scaled", "scale_init": 1.0},
        {"type": "scaled", "scale": "scalar", "scale_init": 1.0, "x0": "identity"},
        {"type": "unet", "skip_init": 0.0},
        {"type": "hyper", "streams": 1},
        {"type": "hyper", "streams": 1, "dynamic": False},
        {"type": "hyper", "streams": 4},  # equal streams, whose sum is n times the one: the final norm takes that out
    ],
)
def test_starts_as_add(stream: dict[str, Any]):
    torch.testing.assert_close(*same_at_start(stream), rtol=1e-4, atol=1e-5)


def test_rezero_starts_as_the_embedding():
    torch.manual_seed(0)
    config = hf_arch.tiny_config("gla", stream={"type": "scaled", "scale": "scalar"})
    model = AutoModelForCausalLM.from_config(config).eval()
    check(model, start_of(model))


@pytest.mark.parametrize(("depth", "wanted"), [(18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth(depth: int, wanted: float):
    config = hf_arch.tiny_config("llama", stream="scaled", num_hidden_layers=depth)
    layer = AutoModelForCausalLM.from_config(config).model.layers[0]
    assert torch.equal(layer.stream.mixer_scale, torch.full((config.hidden_size,), wanted))


def test_ramps_over_the_layers():
    config = hf_arch.tiny_config("gla", stream={"type": "scaled", "x0": "ramp", "backout": 0.2}, num_hidden_layers=3)
    model = AutoModelForCausalLM.from_config(config).model
    pairs = [(layer.stream.stream_scale.item(), layer.stream.x0_scale.item()) for layer in model.layers]
    assert pairs == [pytest.approx(pair) for pair in ((1.15, 0.20), (1.10, 0.125), (1.05, 0.05))]
    assert model.stream.backout.item() == pytest.approx(0.2)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", STREAMS)
def test_costs_what_torch_counts(name: str):
    config = hf_arch.tiny_config("llama", stream=STREAMS[name], **LAYERS)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    length = 12
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IDS.flatten()[:length][None], use_cache=False)
    cost = hf_arch.cost(config, length)
    assert counter.get_total_flops() == pytest.approx(length * cost.flops_per_token_forward, rel=1e-3)
    assert cost.params_total == model.num_parameters()


def test_is_described_and_drawn():
    from hf_arch.report.diagram import diagram

    name, table = hf_arch.describe(hf_arch.tiny_config("gla", stream={"type": "hyper", "streams": 2}))
    assert name.endswith("-Hyper")
    components = dict(table)
    assert components["stream"] == "hyper (streams=2, dynamic=True)"
    assert "hyper" in diagram(components)
    plain = dict(hf_arch.describe(hf_arch.tiny_config("gla"))[1])
    assert plain["stream"] == "add"
    assert "stream" not in diagram(plain)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"type": "hyper", "streams": 0}, "stream streams: 0 is not allowed; use an integer >= 1"),
        ({"type": "hyper", "stream": 2}, "nearest: 'streams'"),
        ({"type": "mhc", "iterations": 0}, "stream iterations: 0 is not allowed; use an integer >= 1"),
        ({"type": "mhc", "eps": 0.0}, "stream eps: 0.0 is not allowed"),
        ({"type": "attention_residual", "block_size": 3}, "block_size: 3 is not allowed; use 1 or an even number"),
        ({"type": "scaled", "scale_init": math.nan}, "scale_init: nan is not allowed; use a finite number"),
        ({"type": "scaled", "scale": "vectors"}, "scale"),
        ({"type": "gated", "temperature": 0.0}, "temperature: 0.0 is not allowed; use a number > 0"),
    ],
)
def test_bad_options_are_refused_in_one_line(stream: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        hf_arch.tiny_config("gla", stream=stream)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
