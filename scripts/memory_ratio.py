"""Peak memory of a training step with a large vocabulary, against transformers' own models of the same parameters.

OMP_NUM_THREADS=1 python scripts/memory_ratio.py llama gpt2 --vocab 50257

Each side trains in a process of its own, forward and backward of two batches; the peak is the largest resident set
above what the process held once its libraries were imported and its weights made: gradients, activations and logits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import torch
import transformers
from training_ratio import THEIRS, step
from transformers import AutoModelForCausalLM

import hf_arch

MIB = 2**20


def resident() -> float:
    """MiB that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * resource.getpagesize() / MIB


def peak(name: str, ours: bool, given: argparse.Namespace, results: Any) -> None:
    """Puts (MiB of weights, MiB of the peak above them) into `results`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = THEIRS[name](given.width, given.layers)
    config.vocab_size = given.vocab
    model: Any = AutoModelForCausalLM.from_config(config).train()
    if ours:
        model = hf_arch.from_foreign(config.to_dict(), model.state_dict()).train()
    warm = torch.randint(3, given.vocab, (1, 8))
    step(model, warm, False)  # what libraries load at their first step
    model.zero_grad(set_to_none=True)
    weights = sum(parameter.nbytes for parameter in model.parameters()) / MIB
    before = resident()
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak starts anew
    for _ in range(2):
        step(model, torch.randint(3, given.vocab, (given.rows, given.length)), False)
    status = Path("/proc/self/status").read_text("utf-8")
    highest = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    results.put((weights, highest - before))


def measured(name: str, ours: bool, given: argparse.Namespace) -> tuple[float, float]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=peak, args=(name, ours, given, results))
    child.start()
    found: tuple[float, float] = results.get()
    child.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["llama", "gpt2"])
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print("model     weights, MiB   peak above them: theirs, ours   ours over theirs   with the weights")
    for name in given.models:
        weights, theirs = measured(name, False, given)
        _, ours = measured(name, True, given)
        whole = (weights + ours) / (weights + theirs)
        print(f"{name:10}{weights:12.0f}{theirs:24.0f}{ours:7.0f}{ours / theirs:18.2f}{whole:19.2f}", flush=True)


if __name__ == "__main__":
    main()
