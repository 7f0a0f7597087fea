"""torchao, quanto, accelerate's offloading, pipelines and ONNX: the model's own numbers, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, QuantoConfig, TorchAoConfig, pipeline

IDS = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(0))


def ao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


@pytest.mark.parametrize("library", ["torchao", "quanto"])
def test_eight_bits_stay_close_and_generate(name: str, library: str, models: dict[str, Path]) -> None:
    plain = AutoModelForCausalLM.from_pretrained(models[name]).eval()
    wanted = ao() if library == "torchao" else QuantoConfig(weights="int8")
    model = AutoModelForCausalLM.from_pretrained(models[name], quantization_config=wanted).eval()
    with torch.no_grad():
        expected, found = plain(IDS).logits, model(IDS).logits
    assert 0 < (expected - found).abs().max() < 0.05 * expected.abs().max()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    made, seen = model.generate(IDS, **options), IDS
    for _ in range(4):
        with torch.no_grad():
            seen = torch.cat((seen, model(seen, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(made, seen)


def test_offloading_changes_nothing(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    from accelerate import cpu_offload

    plain = AutoModelForCausalLM.from_pretrained(models[name]).eval()
    placed = cpu_offload(AutoModelForCausalLM.from_pretrained(models[name]).eval(), execution_device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(placed(IDS).logits, plain(IDS).logits, rtol=0, atol=1e-6)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    assert torch.equal(placed.generate(IDS, **options), plain.generate(IDS, **options))


def test_pipelines(name: str, models: dict[str, Path]) -> None:
    folder = str(models[name])
    write = pipeline("text-generation", model=folder, tokenizer=AutoTokenizer.from_pretrained(folder), device="cpu")
    alone = write("the cat", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    both = write(["the cat", "a much longer prompt"], max_new_tokens=4, do_sample=False, batch_size=2)
    assert both[0][0]["generated_text"] == alone and alone.startswith("the cat")


def test_onnx_works_or_is_refused_in_one_line(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    model = AutoModelForCausalLM.from_pretrained(models[name]).eval()
    model.config.use_cache = False

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    def export() -> Any:
        return torch.onnx.export(Logits(), (IDS,), dynamo=True, verbose=False)

    if name in ("mamba2", "gated_delta_net", "mixed"):
        with pytest.raises(Exception, match=r"ONNX: .* cannot be exported"):
            export()
    elif name == "llama":
        assert export() is not None
