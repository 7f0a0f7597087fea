"""Forward and backward pass of the gated delta rule, and of layers of it, against those in torch that transformers has.

OMP_NUM_THREADS=1 python scripts/delta_ratio.py --rounds 6

The rule with the sizes of `--heads`, and four layers of Qwen3-Next without attention, experts and all but 16 units of
their FFN, with the same parameters on both sides. Both take turns in one process on one thread; processor time of the
thread, the fastest of the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

import hf_arch
from hf_arch.ops.delta_rule import delta_rule

WIDTH, LAYERS, VOCAB = 384, 4, 256


def rule_inputs(rows: int, length: int, heads: int, keys: int, values: int) -> list[Tensor]:
    """q, k [B, T, H, K], v [B, T, H, V], beta, g [B, T, H], which ask for gradients."""
    q, k = (torch.nn.functional.normalize(torch.randn(rows, length, heads, keys), dim=-1) for _ in range(2))
    beta, g = torch.rand(rows, length, heads), -torch.rand(rows, length, heads)
    return [x.requires_grad_() for x in (q, k, torch.randn(rows, length, heads, values), beta, g)]


def rules(rows: int, length: int, *sizes: int) -> dict[str, Callable[[], Any]]:
    given = rule_inputs(rows, length, *sizes)

    def both_passes(o: Tensor) -> Tensor:
        for x in given:
            x.grad = None
        o.sum().backward()
        return o.detach()

    def theirs() -> Tensor:
        q, k, v, beta, g = given
        return both_passes(torch_chunk_gated_delta_rule(q, k, v, g, beta)[0])

    return {"theirs": theirs, "ours": lambda: both_passes(delta_rule(*given)[0])}


def layers(rows: int, length: int, heads: int, keys: int, values: int) -> dict[str, Callable[[], Any]]:
    config = transformers.Qwen3NextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        layer_types=["linear_attention"] * LAYERS,
        linear_num_key_heads=heads,
        linear_num_value_heads=heads,
        linear_key_head_dim=keys,
        linear_value_head_dim=values,
        num_attention_heads=heads,
        intermediate_size=16,
        mlp_only_layers=list(range(LAYERS)),
        num_experts=0,
        vocab_size=VOCAB,
        tie_word_embeddings=True,
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).train()
    ours = hf_arch.from_foreign(theirs.config.to_dict(), theirs.state_dict()).train()
    ids = torch.randint(3, VOCAB, (rows, length))

    def step(model: Any) -> Tensor:
        model.zero_grad(set_to_none=True)
        found = model(input_ids=ids, labels=ids, use_cache=False)
        found.loss.backward()
        return found.loss.detach()

    return {"theirs": lambda: step(theirs), "ours": lambda: step(ours)}


def milliseconds(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The fastest of the rounds. Raises AssertionError where both do not compute the same."""
    torch.testing.assert_close(sides["theirs"](), sides["ours"](), rtol=1e-4, atol=1e-4)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.thread_time()
            run()
            times[name].append(1e3 * (time.thread_time() - start))
    return {name: min(taken) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", default=["6x64x64", "6x64x128", "3x128x128"], help="HEADSxKEYSxVALUES")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print("heads, keys, values       theirs, ms  ours, ms  speed against theirs")
    for sizes in given.heads:
        numbers = [int(size) for size in sizes.split("x")]
        for name, make in (("rule", rules), ("layers", layers)):
            taken = milliseconds(make(given.rows, given.length, *numbers), given.rounds)
            ratio = taken["theirs"] / taken["ours"]
            print(f"{sizes:12}{name:14}{taken['theirs']:10.1f}{taken['ours']:10.1f}{ratio:10.2f}", flush=True)


if __name__ == "__main__":
    main()
