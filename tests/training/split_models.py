"""Two processes: logits, gradients and tokens of models that transformers splits, against those of whole ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

import hf_arch

TENSORS, SHARDS, EXPERTS = {"tp_plan": "auto"}, {"fsdp_size": 2}, {"fsdp_size": 2, "ep_size": 2}
CASES: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    (TENSORS, "llama", {"qk_norm": True}),
    (TENSORS, "gpt2", {}),
    (TENSORS, "moe", {"ffn": {"type": "moe", "num_shared_experts": 1}}),
    (TENSORS, "differential", {}),
    (
        TENSORS,
        "parallel",
        {"mixer": {"type": "parallel", "branches": ["mamba2", {"type": "attention", "qk_norm": False}]}},
    ),
    (TENSORS, "llama", {"embeddings": [{"type": "value"}], "sites": [{"type": "canon"}]}),
    (TENSORS, "llama", {"mixer": [{"type": "attention", "sinks": True}, {"type": "attention"}]}),
    (TENSORS, "llama", {"mixer": [{"type": "attention"}, {"type": "attention", "kv": "shared"}]}),
    (SHARDS, "llama", {"embeddings": ["bigram", "smear", {"type": "value", "mix": "scalar"}]}),
    (SHARDS, "gated_delta_net", {"stream": "mhc"}),
    (EXPERTS, "moe", {}),
]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread(model: PreTrainedModel) -> None:
    """Every parameter random: a scale of 1 or a bias of 0 would hide what is done with it."""
    draws = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draws), alpha=0.1)


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    for number, (how, name, given) in enumerate(CASES):
        case = f"{how} {name} {given}"
        torch.manual_seed(0)
        reference = AutoModelForCausalLM.from_config(hf_arch.tiny_config(name, **given)).train()
        spread(reference)
        place = Path(folder) / str(number)
        if dist.get_rank() == 0:
            reference.save_pretrained(place)
        dist.barrier()
        config = DistributedConfig(**how)
        split = AutoModelForCausalLM.from_pretrained(place, distributed_config=config).train()
        assert any(isinstance(parameter, DTensor) for parameter in split.parameters()), case

        ids = torch.randint(3, 60, (2, 17), generator=torch.Generator().manual_seed(2))
        results = [model(ids, labels=ids, use_cache=False) for model in (split, reference)]
        torch.testing.assert_close(whole(results[0].logits), results[1].logits, rtol=1e-4, atol=1e-5, msg=case)
        for result in results:
            result.loss.backward()
        expected = {key: parameter.grad for key, parameter in reference.named_parameters()}
        for key, parameter in split.named_parameters():
            torch.testing.assert_close(
                whole(parameter.grad), expected[key], rtol=1e-3, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
            )
        tokens = [model.eval().generate(ids, max_new_tokens=4, do_sample=False) for model in (split, reference)]
        assert torch.equal(*tokens), case
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
