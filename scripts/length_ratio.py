"""Time per token by length, of training steps and prefills: whether a model costs more per token in long sequences.

python scripts/length_ratio.py based "llama:sliding_window=64" llama --lengths 512,8192

Lengths take turns in one process on one thread, and the fastest of several rounds counts: the machine may be busy.
Freed memory is kept, as `hf-arch train` does; with `GLIBC_TUNABLES=glibc.malloc.tcache_count=7`, which is the default
and says that the allocator is the user's business, it is not.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.heap import keep_memory

SIZES = {"hidden_size": 384, "num_hidden_layers": 2, "num_attention_heads": 6, "vocab_size": 512}


def build(spec: str, longest: int) -> Any:
    """A model from `name` or `name:option=value;option=value`."""
    name, _, given = spec.partition(":")
    options = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in given.split(";") if pair)}
    sizes = {**SIZES, "max_position_embeddings": longest}
    return AutoModelForCausalLM.from_config(hf_arch.config_from_dict({"architecture": name, **sizes, **options}))


def seconds(model: Any, length: int) -> dict[str, float]:
    """Of one training step (forward and backward) and of one prefill, for each token."""
    ids = torch.randint(3, 500, (1, length))
    model.train()
    start = time.perf_counter()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    train = time.perf_counter() - start
    model.zero_grad()
    model.eval()
    with torch.inference_mode():
        start = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start
    return {"train": train / length, "prefill": prefill / length}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--lengths", default="512,8192")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    lengths = [int(length) for length in arguments.lengths.split(",")]
    print(
        f"{'model':40} {'phase':8} " + " ".join(f"{length:>9}" for length in lengths) + "   us a token, and last/first"
    )
    for spec in arguments.models:
        model = build(spec, max(lengths))
        best: dict[tuple[str, int], float] = {}
        for _ in range(arguments.rounds):
            for length in lengths:
                for phase, value in seconds(model, length).items():
                    best[phase, length] = min(value, best.get((phase, length), value))
        for phase in ("train", "prefill"):
            values = [best[phase, length] * 1e6 for length in lengths]
            numbers = " ".join(f"{value:9.1f}" for value in values)
            print(f"{spec:40} {phase:8} {numbers}   {values[-1] / values[0]:.2f}", flush=True)


if __name__ == "__main__":
    main()
