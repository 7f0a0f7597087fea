"""How fast this machine is in bf16 and in fp32: measured once for its processor, threads and versions, and kept.

A flag of the processor does not tell: bf16 is fast with AMX tiles and with AVX512-BF16, slower than fp32 where it is
emulated. So both are timed in turn, a matrix product and one training step of a small llama, each by its best of a few
rounds, which other work on the machine disturbs least. The step decides: it holds what autocast costs besides products.
`$HF_ARCH_CACHE/precision.json` keeps the numbers; a file that is deleted is measured anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.files import write_json
from hf_arch.data.cache import data_cache, locked
from hf_arch.runs.provenance import cpu_name

ROUNDS = 5
PRODUCT_SIZE = 512
STEP_TOKENS = (2, 128)
STEP_MODEL: dict[str, Any] = {
    "architecture": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
}
WORTH = 1.1
"""How much faster the step has to be in bf16: a smaller gain may be noise, and fp32 is exact."""


@dataclass(frozen=True)
class PrecisionSpeed:
    """Measured on one CPU: `product_gflops` of a square product (GFLOP/s) and `step_ms` of a small training step (ms),
    each under fp32 and bf16; `machine` says which processor, how many threads and which versions."""

    machine: str
    product_gflops: Mapping[str, float]
    step_ms: Mapping[str, float]

    @property
    def faster(self) -> str:
        """What a run should compute in: bf16 where its step is clearly faster."""
        return "bf16" if self.step_ms["fp32"] >= WORTH * self.step_ms["bf16"] else "fp32"

    def describe(self) -> str:
        """The reason for the choice, in words."""
        return (
            f"measured on this CPU: a small step takes {self.step_ms['bf16']:.1f} ms in bf16, "
            f"{self.step_ms['fp32']:.1f} ms in fp32"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for files."""
        return asdict(self)


def precision_speed() -> PrecisionSpeed:
    """The kept measurement of this machine, or a new one: about a second. Of several processes one measures."""
    cache, machine = data_cache(), machine_key()
    file = cache / "precision.json"
    if (found := _kept(file, machine)) is not None:
        return found
    with locked(cache, "precision"):
        if (found := _kept(file, machine)) is not None:
            return found
        found = measure_precisions(machine)
        write_json(
            file, {**_read(file), machine: {key: value for key, value in found.to_dict().items() if key != "machine"}}
        )
    return found


def machine_key() -> str:
    """What the measurement holds for."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {versions}"


def measure_precisions(machine: str, rounds: int = ROUNDS) -> PrecisionSpeed:
    """Times products and steps in both precisions, in turn. Leaves torch's random numbers as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        work = {name: (_product(dtype), _step(dtype)) for name, dtype in _DTYPES.items()}
    products = _best({name: product for name, (product, _) in work.items()}, 3 * rounds)
    steps = _best({name: step for name, (_, step) in work.items()}, rounds)
    return PrecisionSpeed(
        machine,
        {name: round(2e-9 * PRODUCT_SIZE**3 / seconds, 1) for name, seconds in products.items()},
        {name: round(1e3 * seconds, 3) for name, seconds in steps.items()},
    )


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _best(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, called in turn after one call to warm up."""
    best = dict.fromkeys(work, float("inf"))
    for number in range(rounds + 1):
        for name, action in work.items():
            start = time.perf_counter()
            action()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def _product(dtype: torch.dtype) -> Callable[[], object]:
    left, right = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE).to(dtype) for _ in range(2))
    return lambda: left @ right


def _step(dtype: torch.dtype) -> Callable[[], object]:
    model = AutoModelForCausalLM.from_config(hf_arch.config_from_dict(STEP_MODEL)).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(STEP_MODEL["vocab_size"], STEP_TOKENS)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _kept(file: Any, machine: str) -> PrecisionSpeed | None:
    values = _read(file).get(machine)
    try:
        return None if values is None else PrecisionSpeed(machine, values["product_gflops"], values["step_ms"])
    except (KeyError, TypeError):
        return None


def _read(file: Any) -> dict[str, Any]:
    """What the file holds; nothing where it is missing or damaged, which a new measurement mends."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
