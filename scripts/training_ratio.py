"""Forward and backward pass against transformers' own models of the same sizes and parameters.

OMP_NUM_THREADS=1 python scripts/training_ratio.py llama gpt2 moe mamba2 --rounds 5

`same` is both in fp32; `bf16` is ours under autocast, which `training.precision: auto` takes where it was faster, and
theirs in fp32. All take turns in one process on one thread; processor time of the thread, the fastest of the rounds.
Freed memory is kept for all of them, as `hf-arch train` does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.heap import keep_memory

VOCAB = 256


def llama(width: int, layers: int) -> Any:
    return transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64, intermediate_size=8 * width // 3
    )


def gpt2(width: int, layers: int) -> Any:
    undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=width // 64, **undropped)


def moe(width: int, layers: int) -> Any:
    return transformers.MixtralConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        intermediate_size=4 * width // 3,
        num_local_experts=8,
        router_aux_loss_coef=0.0,
    )


def mamba(width: int, layers: int) -> Any:
    return transformers.MambaConfig(hidden_size=width, num_hidden_layers=layers)


def mamba2(width: int, layers: int) -> Any:
    return transformers.Mamba2Config(
        hidden_size=width, num_hidden_layers=layers, head_dim=64, num_heads=width // 32, n_groups=1
    )


THEIRS: dict[str, Callable[[int, int], Any]] = {
    "llama": llama,
    "gpt2": gpt2,
    "moe": moe,
    "mamba2": mamba2,
    "mamba": mamba,
}


def step(model: Any, ids: torch.Tensor, bf16: bool) -> tuple[float, torch.Tensor]:
    """Milliseconds of this thread, and the loss."""
    model.zero_grad(set_to_none=True)
    start = time.thread_time()
    with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return 1e3 * (time.thread_time() - start), loss.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(THEIRS))
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print("model      theirs, ms   same, ms  bf16, ms  speed against theirs: same, bf16")
    for name in given.models:
        torch.manual_seed(0)
        config = THEIRS[name](given.width, given.layers)
        config.vocab_size = VOCAB
        theirs = AutoModelForCausalLM.from_config(config).train()
        ours = hf_arch.from_foreign(theirs.config.to_dict(), theirs.state_dict()).train()
        ids = torch.randint(3, VOCAB, (given.rows, given.length))
        sides = {"theirs": (theirs, False), "same": (ours, False), "bf16": (ours, True)}
        losses = {side: step(model, ids, bf16)[1] for side, (model, bf16) in sides.items()}
        torch.testing.assert_close(losses["theirs"], losses["same"], rtol=1e-4, atol=1e-4)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(given.rounds):
            for side, (model, bf16) in sides.items():
                times[side].append(step(model, ids, bf16)[0])
        best = {side: min(taken) for side, taken in times.items()}
        ratios = [best["theirs"] / best[side] for side in ("same", "bf16")]
        print(
            f"{name:10}{best['theirs']:11.0f}{best['same']:11.0f}{best['bf16']:10.0f}{ratios[0]:14.2f}{ratios[1]:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
