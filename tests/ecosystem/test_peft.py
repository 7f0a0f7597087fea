"""PEFT's adapters: they take part in training, also on the head, and merge and load to the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from .conftest import make_model

IDS = torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(0))
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "all-linear": {"target_modules": "all-linear"},
    "dora": {"target_modules": "all-linear", "use_dora": True},
}


def adapted(name: str, **options: Any) -> Any:
    given = {"task_type": "CAUSAL_LM", "init_lora_weights": False, **options}
    if given.get("use_dora"):
        given["init_lora_weights"] = True
    return get_peft_model(make_model(name, tie_word_embeddings=False), LoraConfig(**given))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_learns_is_saved_loaded_and_merged(name: str, way: str, tmp_path: Path) -> None:
    model = adapted(name, **WAYS[way]).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # DoRA's second factor starts at zero
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert not [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(name, tie_word_embeddings=False), tmp_path)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("chunk", [0, 8])
def test_an_adapter_on_the_head_takes_part_in_the_loss(name: str, chunk: int) -> None:
    model = adapted(name, target_modules=r".*(lm_head|mixer\.(o|out)_proj)").train()
    model.base_model.model.config.loss_chunk_size = chunk
    loss = model(IDS, labels=IDS, output_router_logits=False).loss
    loss.backward()
    grads = [p.grad for key, p in model.named_parameters() if "lm_head.lora" in key]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    if name != "moe":  # whose training adds its routers' losses
        torch.testing.assert_close(model.eval()(IDS, labels=IDS).loss, loss, rtol=1e-4, atol=1e-4)


def test_generation_with_an_adapter_is_recomputation(name: str) -> None:
    model = adapted(name, target_modules="all-linear").eval()
    prompt = IDS[:, :6]
    made = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    seen = prompt
    for _ in range(5):
        with torch.no_grad():
            seen = torch.cat((seen, model(seen, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made, seen)


@pytest.mark.parametrize("method", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_generation_behind_a_learned_prompt_is_recomputation(name: str, method: Any) -> None:
    given = {"encoder_hidden_size": 8} if method is PromptEncoderConfig else {}
    torch.manual_seed(0)
    model = get_peft_model(make_model(name), method(num_virtual_tokens=4, task_type="CAUSAL_LM", **given)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prompt = IDS[:, :6]
    if method is PrefixTuningConfig and name not in ("llama", "moe"):  # it fills plain keys in every layer
        with pytest.raises(ValueError, match=r"past_key_values: .* Prefix tuning"):
            model.generate(input_ids=prompt, max_new_tokens=5)
        return
    made = model.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    seen = prompt
    for _ in range(5):
        with torch.no_grad():
            seen = torch.cat((seen, model(input_ids=seen, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made, seen)


def test_the_table_of_default_targets_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as table

    monkeypatch.delitem(table, "hfa_gqa", raising=False)
    monkeypatch.setenv("HF_ARCH_PEFT_DEFAULTS", "0")
    AutoModelForCausalLM.from_config(make_model("gqa").config)
    assert "hfa_gqa" not in table
    monkeypatch.delenv("HF_ARCH_PEFT_DEFAULTS")
    make_model("gqa")
    assert table["hfa_gqa"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
