"""Processor time of a step of `generate`, batch 1, greedy, against transformers' own model of the same sizes.

OMP_NUM_THREADS=1 python scripts/decode_ratio.py llama gpt2 mamba2 --contexts 128,2048

Both models take turns in one process on one thread; a step is timed from one token's arrival at the streamer to the
next, in processor time of the thread, and the median of all steps counts: the machine may be busy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

import hf_arch

WIDTH, LAYERS, HEADS, VOCAB = 384, 6, 6, 4096


def llama(longest: int) -> Any:
    return transformers.LlamaConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=1024,
        vocab_size=VOCAB,
        max_position_embeddings=longest,
    )


def gpt2(longest: int) -> Any:
    return transformers.GPT2Config(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB, n_positions=longest)


def mamba2(longest: int) -> Any:
    return transformers.Mamba2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, head_dim=64, num_heads=12, n_groups=1, vocab_size=VOCAB
    )


THEIRS: dict[str, Callable[[int], Any]] = {"llama": llama, "gpt2": gpt2, "mamba2": mamba2}


class Clock:
    """A streamer that notes when tokens arrive."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.thread_time())

    def end(self) -> None:
        pass

    def steps(self) -> list[float]:
        """Seconds of each step behind the prefill and the first one."""
        return [later - former for former, later in zip(self.times[2:], self.times[3:], strict=False)]


def steps(model: Any, prompt: torch.Tensor, tokens: int) -> list[float]:
    clock = Clock()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    return clock.steps()


def ours(theirs: Any) -> Any:
    """This package's model with the parameters of `theirs`."""
    return hf_arch.from_foreign(theirs.config.to_dict(), theirs.state_dict()).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(THEIRS))
    parser.add_argument("--contexts", default="128,2048")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    contexts = [int(context) for context in arguments.contexts.split(",")]
    print("model     context  theirs, ms  ours, ms  speed against theirs")
    for name in arguments.models:
        torch.manual_seed(0)
        theirs = AutoModelForCausalLM.from_config(THEIRS[name](max(contexts) + arguments.tokens)).eval()
        models = {"theirs": theirs, "ours": ours(theirs)}
        for context in contexts:
            prompt = torch.randint(3, VOCAB, (1, context))
            times: dict[str, list[float]] = {key: [] for key in models}
            for round_ in range(arguments.rounds + 1):
                for key, model in models.items():
                    measured = steps(model, prompt, arguments.tokens)
                    times[key] += measured if round_ else []  # the first round warms up
            medians = {key: statistics.median(values) for key, values in times.items()}
            ratio = medians["theirs"] / medians["ours"]
            print(
                f"{name:10}{context:7}{medians['theirs'] * 1e3:12.2f}{medians['ours'] * 1e3:10.2f}{ratio:10.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
