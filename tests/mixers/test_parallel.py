"""Mixers side by side in one layer: their sum, with factors and norms, states that do not meet, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch import checks
from hf_arch.core.errors import ConfigError
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.state import MIXER_STATES, LayerState
from hf_arch.models import layer_masks
from hf_arch.models.cost import model_cost
from hf_arch.models.describe import describe

SCAN = {"type": "mamba2", "head_dim": 16, "state_size": 8}
WINDOW = {"type": "attention", "window": 6}
MIXTURES: dict[str, list[Any]] = {
    "attention and scan": ["attention", SCAN],
    "three, a window, two states": ["gla", SCAN, WINDOW],
    "states alone": ["gated_delta_net", "retnet", "hgrn2"],
    "latent keys": ["mla", "gla"],
    "states of more than one kind": ["path_attention", "rwkv6"],
    "four states, then another's": ["gla", "mamba3", "retnet"],
    "four states behind keys": ["attention", "gated_conv", "linformer"],
}


def parallel(branches: list[Any], **given: Any) -> dict[str, Any]:
    return {"type": "parallel", "branches": branches, **given}


def model_of(branches: list[Any], **given: Any) -> Any:
    mixer = parallel(branches, **given)
    return checks.perturbed_model(hf_arch.tiny_config("mixed", num_hidden_layers=2, mixer=mixer, qk_norm=False), 0)


def ids(length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 97, (2, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_layer_is_the_sum_of_its_branches() -> None:
    mixer = model_of(["attention", SCAN], input_scales=[0.5, 2.0], output_scales=[3.0, -1.0]).model.layers[0].mixer
    scan = mixer.branches[1]
    x = torch.randn(2, 9, mixer.config.hidden_size)
    mixer.rotates[0] = False  # no rotation is made outside a model
    torch.testing.assert_close(mixer(x), 3 * mixer.branches[0](0.5 * x) - scan(2 * x), rtol=0, atol=1e-5)
    normed = model_of(["gla", SCAN], branch_norm=True).model.layers[0].mixer
    expected = sum(norm(branch(x)) for norm, branch in zip(normed.norms, normed.branches, strict=True))
    torch.testing.assert_close(normed(x), expected, rtol=0, atol=1e-5)


def test_a_mixer_with_more_states_than_places_is_refused_side_by_side() -> None:
    state = LayerState(DynamicCache(), 0, EMPTY_CONTEXT.changed(first_state=0))
    with pytest.raises(ValueError, match="branches: a mixer keeps its state 8 where the next one's begin"):
        state.write_recurrent(torch.zeros(1), MIXER_STATES)


@torch.no_grad()
@pytest.mark.parametrize("name", MIXTURES)
def test_padding_documents_chunks_and_steps_change_nothing(name: str) -> None:
    model, tokens = model_of(MIXTURES[name]), ids(18)
    whole = model(tokens).logits
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), tokens], 1)
    mask = (torch.arange(22) >= 4).long().expand(2, -1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 4:], whole, rtol=0, atol=1e-4)
    output = model(padded[:, :11], attention_mask=mask[:, :11], use_cache=True)
    logits = [output.logits]
    for start, end in ((11, 15), *((index, index + 1) for index in range(15, 22))):
        output = model(
            padded[:, start:end], attention_mask=mask[:, :end], past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1)[:, 4:], whole, rtol=0, atol=1e-4)
    packed = torch.cat([tokens[:1], tokens[1:]], 1)
    positions = torch.arange(18).repeat(2)[None]
    separate = model(packed, position_ids=positions).logits.view(2, 18, -1)
    torch.testing.assert_close(separate, whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_beams_and_a_static_cache_generate_the_same() -> None:
    model, tokens = model_of(["gla", SCAN, "attention"]), ids(7)
    plain = model.generate(tokens, max_new_tokens=6, do_sample=False)
    uncached = model.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=False)
    static = model.generate(tokens, max_new_tokens=6, do_sample=False, cache_implementation="static")
    assert torch.equal(plain, uncached) and torch.equal(plain, static)
    beams = [model.generate(tokens, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=c) for c in (True, False)]
    assert torch.equal(*beams)


@pytest.mark.rest
@pytest.mark.parametrize("name", ["three, a window, two states", "states of more than one kind"])
def test_compiled_and_in_bfloat16_it_is_the_same(name: str) -> None:
    model, tokens = model_of(MIXTURES[name], branch_norm=True), ids(14)
    mask = torch.ones_like(tokens)
    mask[1, :3] = 0
    labels = tokens.clone()
    labels[1, :4] = -100  # what padding predicts is undefined
    compiled = torch.compile(model, backend="aot_eager", dynamic=False)

    def gradients(run: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        out = run(tokens, attention_mask=mask, labels=labels, use_cache=False)
        out.loss.backward()
        return out.logits[mask.bool()].float(), [parameter.grad.clone() for parameter in model.parameters()]

    (logits, grads), (again, its) = gradients(model), gradients(compiled)
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    for grad, other in zip(grads, its, strict=True):
        torch.testing.assert_close(other, grad, rtol=0, atol=1e-4 * float(grad.abs().max()) + 1e-8)
    with torch.autocast("cpu", torch.bfloat16):
        near, _ = gradients(model)
    assert torch.nn.functional.cosine_similarity(near, logits, dim=-1).min() > 0.99


@torch.no_grad()
def test_a_branch_attends_to_a_window_in_blocks_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of(["gla", {"type": "attention", "window": 16}]), ids(600)
    made: list[Any] = []
    real = layer_masks.build_band
    monkeypatch.setattr(layer_masks, "build_band", lambda *given: made.append(real(*given)) or made[-1])
    banded = model(tokens, use_cache=False).logits
    assert made
    model.model.mask_plan.takes_bands = [False] * len(model.model.layers)
    torch.testing.assert_close(banded, model(tokens, use_cache=False).logits, rtol=0, atol=1e-5)


def test_tensor_parallelism_splits_what_each_branch_does() -> None:
    scan, attention = {"type": "mamba2", "head_dim": 16, "state_size": 8}, {"type": "attention", "qk_norm": False}

    def plan_of(*branches: list[Any]) -> dict[str, str] | None:
        mixers = [parallel(one) for one in branches]
        return hf_arch.tiny_config("parallel", mixer=mixers, qk_norm=False, ffn="none").base_model_tp_plan

    styles = {"q_proj": "colwise", "k_proj": "colwise", "v_proj": "colwise", "o_proj": "rowwise"}
    expected = {f"layers.*.mixer.branches.*.{name}": style for name, style in styles.items()}
    assert plan_of([scan, attention], [scan, attention]) == expected
    # transformers names a module in all layers and branches at once: where one name is another thing elsewhere, nothing
    # is split.
    assert plan_of([scan, attention], ["gla", scan]) is None
    assert plan_of(["gla", attention], ["gla", attention]) is None


def test_the_architecture_has_its_own_name() -> None:
    config = hf_arch.tiny_config("parallel")
    assert config.model_type == "hfa_parallel"
    assert describe(config)[0].startswith("2L-4H-32D-Attn|Mamba2|GLA-")


def test_saved_config_says_every_option_and_costs_are_those_of_the_branches(tmp_path: Any) -> None:
    model = model_of(["attention", SCAN])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.mixer == model.config.mixer
    assert again.config.mixer["branches"][1]["expand"] == 2
    assert torch.equal(again(ids(9)).logits, model(ids(9)).logits)
    both, alone = (
        model.config,
        [hf_arch.tiny_config("mixed", num_hidden_layers=2, mixer=one, qk_norm=False) for one in ("attention", SCAN)],
    )
    count = model_cost(both, 16)
    assert count.state_bytes(16) == sum(model_cost(one, 16).state_bytes(16) for one in alone)
    assert count.params_total == sum(parameter.numel() for parameter in model.parameters())
    assert "Attn|Mamba2-RoPE" in describe(both)[0]
    assert both.layer_types == ["hybrid", "hybrid"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"branches": ["gla"]}, "branches: 1 of them is not allowed; use at least two"),
        ({"branches": ["gla", "attention", "mla"]}, "Attention and .* each keep keys and values"),
        ({"branches": ["gla", "mambda"]}, "branches: 'mambda' .*nearest.*'mamba"),
        ({"branches": ["gla", {"type": "mamba2", "heads": 2}]}, "branches mamba2: unknown key 'heads'"),
        ({"branches": ["gla", {"expand_k": 1}]}, "is neither a name nor a dict with a `type`"),
        ({"branches": ["gla", "rwkv7"]}, "hands .* from layer to layer, which a branch cannot"),
        ({"branches": ["gla", {"type": "attention", "kv": "shared"}]}, "kv: 'shared'|from layer to layer"),
        ({"branches": ["gla", "parallel"]}, "'parallel' is not allowed as a branch"),
        ({"branches": ["gla", "retnet"], "output_scales": [1.0]}, "output_scales: .* for each of 2 branches"),
        ({"branches": ["gla", "retnet"], "input_scales": [1.0, 0.0]}, "input_scales: .* other than 0"),
    ],
)
def test_what_cannot_stand_side_by_side_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        hf_arch.tiny_config("mixed", num_hidden_layers=2, mixer={"type": "parallel", **given}, qk_norm=False)


def test_a_position_bias_is_refused_in_branches() -> None:
    with pytest.raises(ConfigError, match="position: 'alibi' is not supported in branches"):
        hf_arch.tiny_config("mixed", num_hidden_layers=2, mixer=parallel(["gla", "attention"]), position="alibi")
