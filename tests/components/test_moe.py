"""Mixtures of experts: backends against the formula, routing, balancing, losses, and what they cost."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.layers.ffns.moe import MixtureOfExperts, load_balancing_loss, rebalance_experts

PLAIN = {"type": "moe", "num_experts": 6, "intermediate_size": 12}
DEEP = {
    **PLAIN,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "router": "sigmoid",
    "score_bias": True,
    "num_groups": 4,
    "groups_per_token": 2,
    "num_shared_experts": 2,
    "routed_scaling_factor": 2.5,
}
ODD = {**PLAIN, "intermediate_size": 23}  # rows that do not begin at multiples of 16 bytes
GELU = {**PLAIN, "gated": False, "hidden_act": "gelu", "normalize_weights": False, "num_experts_per_tok": 1}


def build(**options) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("moe", ffn=options))
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.add_(torch.randn_like(tensor) * 0.3)
    return model


def ids(batch: int = 4, length: int = 13) -> torch.Tensor:
    return torch.randint(3, 97, (batch, length), generator=torch.Generator().manual_seed(1))


def naive(layer: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """The formula, one token and one expert at a time."""
    o, out = layer.options, []
    weights = dict(layer.experts.named_parameters())
    for token in x.double():
        logits = layer.router.weight.double() @ token
        scores = logits.softmax(0) if o.router == "softmax" else logits.sigmoid()
        biased = scores if layer.router.score_bias is None else scores + layer.router.score_bias
        groups = biased.view(o.num_groups, -1)
        best = groups.topk(min(2, groups.shape[1])).values.sum(1).topk(o.groups_per_token).indices
        allowed = torch.cat([torch.arange(len(biased)).view(o.num_groups, -1)[group] for group in best])
        chosen = allowed[biased[allowed].topk(o.num_experts_per_tok).indices]
        share = scores[chosen] / (scores[chosen].sum() if o.normalize_weights else 1.0) * o.routed_scaling_factor
        total = torch.zeros_like(token)
        for weight, e in zip(share, chosen, strict=True):
            if o.gated:
                gate, up = (weights["gate_up_proj"][e].double() @ token).chunk(2)
                inner = F.silu(gate) * up
            else:
                inner = F.gelu(weights["up_proj"][e].double() @ token)
            total = total + weight * (weights["down_proj"][e].double() @ inner)
        if layer.shared_experts is not None:
            w = {name: value.double() for name, value in layer.shared_experts.named_parameters()}
            inner = F.silu(w["gate_proj.weight"] @ token) * (w["up_proj.weight"] @ token)
            total = total + w["down_proj.weight"] @ inner
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("options", [PLAIN, DEEP, GELU, ODD], ids=["softmax", "sigmoid", "gelu", "odd"])
def test_every_backend_equals_the_formula(options, backend):
    model = build(**options).eval()
    model.set_experts_implementation(backend)
    layer, x = model.model.layers[0].ffn, torch.randn(2, 9, 32)
    x.requires_grad_()
    result = layer(x)
    out, logits = result.hidden_states, result.router_logits
    assert logits.shape == (18, options["num_experts"])
    expected = naive(layer, x.flatten(0, 1)).view_as(x)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-5)
    wanted = [x, *layer.parameters()]
    direction = torch.randn_like(out)
    actual = torch.autograd.grad((out * direction).sum(), wanted, allow_unused=True)
    expected = torch.autograd.grad((expected * direction).sum(), wanted, allow_unused=True)
    for a, e in zip(actual, expected, strict=True):
        e = torch.zeros_like(a) if e is None else e
        torch.testing.assert_close(a, e.to(a.dtype), rtol=0, atol=1e-4 * max(1.0, e.abs().max().item()))


def test_balancing_loss_is_mixtrals_and_least_for_even_use():
    options = build(**PLAIN).model.layers[0].ffn.options
    logits = torch.randn(3, 20, 6) * 2
    mask = torch.ones(4, 5)
    mask[1, :3] = 0
    for weights, given in ((torch.ones(60), None), (mask.flatten().repeat(3), mask)):
        expected = load_balancing_loss_func(tuple(logits), 6, 2, given)
        torch.testing.assert_close(load_balancing_loss(logits.flatten(0, 1), options, weights), expected)
    even = torch.eye(6) * 5 + torch.eye(6).roll(1, 1) * 4
    torch.testing.assert_close(load_balancing_loss(even, options, torch.ones(6)), torch.tensor(2.0))


def test_losses_are_added_in_training_only_and_by_share_of_the_step():
    model = build(**{**PLAIN, "aux_loss_coef": 0.3, "z_loss_coef": 0.2})
    plain = model.eval()(ids(), labels=ids())
    assert not hasattr(plain, "aux_loss")
    asked = model(ids(), labels=ids(), output_router_logits=True)
    torch.testing.assert_close(asked.loss, plain.loss)
    logits = torch.stack(asked.router_logits)
    assert logits.shape == (2, 52, 6)
    torch.testing.assert_close(asked.aux_loss, load_balancing_loss_func(asked.router_logits, 6, 2))
    of_targets = logits.unflatten(1, (4, 13))[:, :, :-1]
    penalty = 0.3 * asked.aux_loss + 0.2 * torch.logsumexp(of_targets, -1).square().mean()
    trained = model.train()(ids(), labels=ids())
    torch.testing.assert_close(trained.loss, plain.loss + penalty)
    torch.testing.assert_close(trained.aux_loss, asked.aux_loss)
    count = torch.tensor(10 * 4 * 12)
    torch.testing.assert_close(
        model(ids(), labels=ids(), num_items_in_batch=count).loss, (plain.loss + penalty) / 10, rtol=1e-5, atol=1e-6
    )


def test_padding_takes_no_part_in_losses_and_loads():
    model = build(**{**DEEP, "aux_loss_coef": 0.5, "z_loss_coef": 0.1}).train()
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[:, :4] = 0
    labels = ids(2).masked_fill(mask == 0, -100)
    labels[:, 4] = -100  # the first label of a row is never a target, but after padding it would be
    padded = model(ids(2), attention_mask=mask, labels=labels)
    loads = [layer.ffn.load for layer in model.model.layers]
    for layer in model.model.layers:
        layer.ffn.load = None
    alone = model(ids(2)[:, 4:], labels=ids(2)[:, 4:])
    torch.testing.assert_close(padded.aux_loss, alone.aux_loss)
    torch.testing.assert_close(padded.loss, alone.loss, rtol=1e-4, atol=1e-5)
    for load, layer in zip(loads, model.model.layers, strict=True):
        assert torch.equal(load, layer.ffn.load) and load.sum() == 2 * 9 * 3


def test_bias_moves_the_choice_towards_idle_experts_but_no_weights():
    model = build(**{**DEEP, "num_groups": 1, "groups_per_token": 1, "bias_update_rate": 0.02}).train()
    router = model.model.layers[0].ffn.router
    router.score_bias.zero_()
    x = torch.randn(400, 32) + 0.5
    _, before, chosen = router(x)
    router.score_bias.fill_(0.7)  # the same for all: nothing may change
    assert torch.equal(router(x)[2], chosen) and torch.equal(router(x)[1], before)
    router.score_bias.zero_()

    def spread() -> float:
        counts = torch.bincount(router(x)[2].flatten(), minlength=8).float()
        return (counts.max() / counts.mean()).item()

    first = spread()
    for _ in range(60):
        model.model.layers[0].ffn(x[None])
        rebalance_experts(model)
    assert model.model.layers[0].ffn.load is None
    assert spread() < 1.2 and first > 1.5
    model.eval().model.layers[0].ffn(x[None])
    assert model.model.layers[0].ffn.load is None  # only training counts


def test_one_rebalancing_step_is_the_rule():
    layer = build(**DEEP).model.layers[0].ffn
    layer.router.score_bias.zero_()
    layer.load = torch.tensor([8.0, 0.0, 4.0, 4.0, 4.0, 4.0, 3.0, 5.0])
    layer.rebalance()
    signs = torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
    torch.testing.assert_close(layer.router.score_bias, 0.001 * signs)


def test_initial_weights():
    config = hf_arch.tiny_config("moe", hidden_size=64, ffn={**DEEP, "intermediate_size": 32})
    layer = AutoModelForCausalLM.from_config(config).model.layers[0].ffn
    for name, parameter in layer.named_parameters():
        assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name
    assert layer.router.score_bias.eq(0).all()
    config = hf_arch.tiny_config("moe", hidden_size=64, ffn=DEEP, rescale_residual_init=True)
    layer = AutoModelForCausalLM.from_config(config).model.layers[0].ffn
    for weight in (layer.experts.down_proj, layer.shared_experts.down_proj.weight):
        assert weight.std().item() == pytest.approx(0.01, rel=0.15)  # 0.02 / sqrt(2 * 2 layers)


def test_cost_counts_the_chosen_experts():
    one = 2 * 12 * 32 + 32 * 12  # gate, up and down of one expert
    cost = {k: hf_arch.cost(hf_arch.tiny_config("moe", ffn={**PLAIN, "num_experts_per_tok": k}), 64) for k in (1, 3)}
    assert cost[1].params_total == cost[3].params_total
    assert cost[1].params_total - cost[1].params_active == 2 * 5 * one
    assert cost[3].params_active - cost[1].params_active == 2 * 2 * one
    assert cost[3].flops_per_token_forward - cost[1].flops_per_token_forward == 2 * 2 * 2 * one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 .* 6 experts; nearest valid: 6"),
        ({"num_groups": 4}, "num_groups: 4 does not divide num_experts 6; nearest valid: 3 or 6"),
        ({"num_groups": 3, "num_experts_per_tok": 3}, "num_experts_per_tok 3 .* 2 experts in a token's groups"),
        ({"router": "tanh"}, "router"),
        ({"num_expert": 3}, "num_expert"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("moe", ffn={**PLAIN, **options})
