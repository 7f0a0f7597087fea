"""What the C kernels gain on this machine: training steps of whole models with and without, in turn in one process.

python scripts/kernel_ratio.py mamba gla gsa --width 384 --rows 4 --length 256

Forward and backward pass on one thread, its processor time, the fastest of the rounds; freed memory is kept, as
`hf-arch train` does. `share` is llama's time over a model's, both as they are by default. `--equal-parameters` gives
each model llama's number of parameters, as `experiment.match` does: by the width of its FFN, or its own where it has
none.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.heap import keep_memory
from hf_arch.environment import temporarily
from hf_arch.experiments.planning.match import match_model, model_size
from hf_arch.ops.native import compiler
from hf_arch.recipe.match import MatchOptions


def configure(spec: str, width: int, layers: int) -> dict[str, Any]:
    """The configuration of `name` or `name:layers`."""
    name, _, given = spec.partition(":")
    sizes = {"hidden_size": width, "num_hidden_layers": int(given or layers), "num_attention_heads": 6, "head_dim": 64}
    sizes |= {"num_attention_heads": 4, "head_dim": width // 4} if width % 6 or width < 384 else {}
    return {"architecture": name, "vocab_size": 256, **sizes}


def parameters_of(values: dict[str, Any]) -> float:
    """Of the model that these describe."""
    return model_size(hf_arch.config_from_dict(values), "parameters", 256)


def matched(values: dict[str, Any], parameters: float) -> dict[str, Any]:
    """The same with that many parameters."""
    found = match_model(
        lambda changes: parameters_of(values | dict(changes)),
        parameters,
        MatchOptions(by="parameters", tolerance=0.1),  # widths of Mamba-2 go with its heads
        values["architecture"],
        "llama",
    )
    return values | found.changes


def step(model: Any, ids: torch.Tensor, backend: str) -> float:
    """Milliseconds of this thread."""
    with temporarily({"HF_ARCH_BACKEND": backend}, replace=True):
        start = time.thread_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return 1e3 * (time.thread_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="architecture, or architecture:layers")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--equal-parameters", action="store_true")
    given = parser.parse_args()
    if compiler() is None:
        raise SystemExit("there are no C kernels on this machine: install a C compiler")
    keep_memory()
    torch.set_num_threads(1)
    sizes = {spec: configure(spec, given.width, given.layers) for spec in dict.fromkeys(["llama", *given.models])}
    if given.equal_parameters:
        sizes = {spec: matched(values, parameters_of(sizes["llama"])) for spec, values in sizes.items()}
    models = {
        spec: AutoModelForCausalLM.from_config(hf_arch.config_from_dict(values)).train()
        for spec, values in sizes.items()
    }
    ids = torch.randint(3, 250, (given.rows, given.length))
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(given.rounds + 1):
        for spec, model in models.items():
            for backend in ("torch", "auto"):
                taken = step(model, ids, backend)
                if number:
                    times.setdefault((spec, backend), []).append(taken)
    fastest = {key: min(taken) for key, taken in times.items()}
    print(f"{'model':28}{'parameters':>12}{'torch, ms':>11}{'kernels':>10}{'gain':>7}{'share':>7}")
    for spec, model in models.items():
        plain, fast = fastest[spec, "torch"], fastest[spec, "auto"]
        share = fastest["llama", "auto"] / fast
        count = f"{model.num_parameters():,}"
        print(f"{spec:28}{count:>12}{plain:11.0f}{fast:10.0f}{plain / fast:7.2f}{share:7.2f}")


if __name__ == "__main__":
    main()
