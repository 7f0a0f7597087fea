"""The bytes of a step counted from shapes against what the allocator records of a real one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.evaluation import known_results
from hf_arch.evaluation import step_memory as counted
from hf_arch.evaluation.step_memory import step_memory
from hf_arch.evaluation.tensor_memory import peak_tensor_bytes
from hf_arch.ops.native import compiler

BATCH, LENGTH = 4, 96


def config(name: str, **changes: Any) -> Any:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256}
    return hf_arch.config_from_dict({"architecture": name, **sizes, "max_position_embeddings": 128, **changes})


def measured(config: Any, precision: str = "fp32", checkpointing: bool = False) -> int:
    """The peak of two real steps with fused AdamW, the model and its states included."""

    def steps() -> None:
        model = AutoModelForCausalLM.from_config(config).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss

    return peak_tensor_bytes(steps, torch.device("cpu"))


NAMES = (
    "llama",
    "gpt2",
    "gla",
    "mamba",
    "mamba2",
    "gated_delta_net",
    "rwkv7",
    "hgrn",
    "retnet",
    "based",
    "hybrid",
    "mla",
)
OTHERWISE = ("llama", "gla", "mamba", "hybrid")
"""Of which the fast suite also counts a step in bf16 and one with checkpoints."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "precision", "checkpointing"),
    [
        pytest.param(name, *how, marks=() if how == ("fp32", False) or name in OTHERWISE else pytest.mark.slow)
        for how in (("fp32", False), ("bf16", False), ("fp32", True))
        for name in NAMES
    ],
)
def test_a_step_takes_what_its_shapes_say(name: str, precision: str, checkpointing: bool) -> None:
    model = config(name)
    parts = step_memory(model, BATCH, LENGTH, precision, checkpointing)
    assert sum(parts.values()) == pytest.approx(measured(model, precision, checkpointing), rel=0.15)


@pytest.mark.rest
@pytest.mark.parametrize("name", ["gla", "mamba"])
def test_torchs_forms_are_counted_without_the_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, for which a plan is made on this machine."""
    model = config(name)
    parts, native = (step_memory(model, BATCH, LENGTH, "fp32", True, device) for device in ("cuda", "cpu"))
    assert compiler() is None or sum(native.values()) < sum(parts.values())
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    assert sum(parts.values()) == pytest.approx(measured(model, "fp32", True), rel=0.15)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("name", "device", "precision", "checkpointing"),
    [("mamba", "cuda", "fp32", False), ("hgrn", "cuda", "bf16", True), ("mamba", "cpu", "fp32", True)],
)
def test_what_is_left_out_takes_nothing(
    name: str, device: str, precision: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations that write into a tensor they are given are not carried out, and equal calls of an operator once."""
    model = config(name, num_hidden_layers=3)
    arguments = (model, BATCH, 40, precision, checkpointing, device)
    quick = step_memory(*arguments)
    monkeypatch.setattr(counted, "written", lambda *_: None)
    monkeypatch.setattr(counted, "_described", lambda _: object())
    assert quick == step_memory(*arguments)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "device", "precision", "checkpointing"),
    [
        ("gla", "cuda", "bf16", True),
        ("mixed", "cpu", "fp32", False),
        ("llama", "cuda", "bf16", False),
        ("gpt2", "cpu", "fp32", True),
        ("moe", "cuda", "bf16", False),
        ("rwkv7", "cuda", "bf16", False),
        ("mamba2", "cpu", "fp32", False),
    ],
)
def test_results_looked_up_are_those_of_the_operations(
    name: str, device: str, precision: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = config(name, **({"mixer": ["gla", "attention"]} if name == "mixed" else {}))
    arguments = (model, BATCH, 40, precision, checkpointing, device)
    step_memory(*arguments)
    quick = step_memory(*arguments)  # of which all is known by now
    monkeypatch.setattr(known_results.KnownResults, "of", lambda _self, func, args, kwargs: func(*args, **kwargs))
    assert quick == step_memory(*arguments)


def test_parts_are_named_and_weights_and_states_are_exact() -> None:
    model = config("mixed", mixer=["gla", "attention"])
    parts = step_memory(model, BATCH, LENGTH)
    weights = 4 * hf_arch.cost(model, LENGTH).params_total
    assert parts["optimizer"] == 2 * weights
    assert parts["weights"] == pytest.approx(weights, rel=0.02)  # and a few buffers
    assert len([part for part in parts if part.startswith("mixer ")]) == 2 and parts["ffn"] > 0


@pytest.mark.rest
def test_checkpointing_keeps_less_and_rows_more() -> None:
    model = config("llama", num_hidden_layers=4)
    plain, checkpointed, fewer = (
        sum(step_memory(model, *arguments).values())
        for arguments in ((BATCH, LENGTH), (BATCH, LENGTH, "fp32", True), (1, LENGTH))
    )
    assert fewer < checkpointed < plain


@pytest.mark.rest
@pytest.mark.parametrize("changes", [{}, {"mixer": ["mamba", {"type": "attention", "window": 32}]}])
def test_a_deep_model_is_continued_from_two_depths(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    model, length = config("mixed" if changes else "llama", num_hidden_layers=12, **changes), 40
    quick = step_memory(model, BATCH, length)
    monkeypatch.setattr(counted, "FULL_DEPTHS", 100)
    whole = step_memory(model, BATCH, length)
    assert quick.keys() == whole.keys()
    assert {part: size for part, size in quick.items() if part != "backward"} == pytest.approx(
        {part: size for part, size in whole.items() if part != "backward"}, rel=0.01
    )
    assert sum(quick.values()) == pytest.approx(sum(whole.values()), rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_are_counted(precision: str) -> None:
    model = config("moe")
    parts = step_memory(model, BATCH, LENGTH, precision)
    assert sum(parts.values()) == pytest.approx(measured(model, precision), rel=0.15)


def test_what_depends_on_values_is_refused() -> None:
    """With `eager` experts the rows of each are looked up, and shapes do not tell how many there are."""
    model = config("moe")
    model._experts_implementation = "eager"
    with pytest.raises(ConfigError, match="the memory of 'ffn' depends on its input's values"):
        step_memory(model, BATCH, LENGTH)


def test_what_depends_on_addresses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the grouped products of transformers' experts do with releases of torch before 2.11."""
    product = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: product(self, x) * (x.data_ptr() % 16))
    with pytest.raises(ConfigError, match="depends on where its tensors lie"):
        step_memory(config("llama"), BATCH, LENGTH, device="cuda")
