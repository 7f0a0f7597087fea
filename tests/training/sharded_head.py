"""Two processes: the chunked loss with a head that FSDP2 shards by itself, or with the root, and the whole model."""

from __future__ import annotations

import copy

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

import hf_arch


def main() -> None:
    dist.init_process_group("gloo")
    for name in ("llama", "mamba2"):
        for head_alone in (True, False):
            torch.manual_seed(0)
            config = hf_arch.tiny_config(name, tie_word_embeddings=False, loss_chunk_size=4)
            whole = AutoModelForCausalLM.from_config(config).train()
            sharded = copy.deepcopy(whole)
            for part in [*sharded.model.layers, *([sharded.lm_head] if head_alone else []), sharded]:
                fully_shard(part)
            ids = torch.randint(3, 97, (2, 11))
            losses = [model(ids, labels=ids, use_cache=False).loss for model in (sharded, whole)]
            torch.testing.assert_close(losses[0], losses[1])
            for loss in losses:
                loss.backward()
            pairs = zip(sharded.named_parameters(), whole.parameters(), strict=True)
            for (key, mine), theirs in pairs:
                grad = mine.grad.full_tensor()
                torch.testing.assert_close(grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=f"{name} {key} {head_alone}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
