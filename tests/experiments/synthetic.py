"""Run folders with invented numbers: what a finished suite looks like on disk, in milliseconds."""

from __future__ import annotations

import json
import math
import random
import zlib
from pathlib import Path
from typing import Any

# name: (loss without noise, parameters, state bytes, decode tokens/s, components)
ARCHITECTURES: dict[str, tuple[float, int, int, float, dict[str, Any]]] = {
    "gpt2": (1.62, 1_204_224, 131_072, 410.0, {"mixer": "attention", "position": "learned", "norm": "layernorm"}),
    "llama": (1.55, 1_199_872, 131_072, 395.0, {"mixer": "attention", "position": "rope", "norm": "rmsnorm"}),
    "gla": (1.54, 1_201_408, 65_536, 730.0, {"mixer": "gla", "position": "none", "norm": "rmsnorm"}),
    "mamba": (1.59, 1_207_000, 73_728, 655.0, {"mixer": "mamba", "conv_kernel": 4, "norm": "rmsnorm"}),
}
STEPS = 200
TOKENS_PER_STEP = 4096
VERSIONS = {"hf_arch": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}


def write_run(
    root: Path,
    name: str = "gla",
    seed: int = 1,
    *,
    loss: float | None = None,
    learning_rate: float = 1e-3,
    hypothesis: str = "gla better than gpt2",
    results: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """One finished run. `results` and `config` (by section) replace or add keys; a key set to None is left out."""
    base, params, state, decode, components = ARCHITECTURES.get(name, ARCHITECTURES["gla"])
    noise = random.Random(f"{name}-{seed}").gauss(0, 0.004) + random.Random(seed).gauss(0, 0.02)
    final = base + noise if loss is None else loss
    tokens = STEPS * TOKENS_PER_STEP
    trained = (results or {}).get("params_total") or params
    written: dict[str, Any] = {
        "name": name,
        "architecture": name,
        "architecture_name": f"4L-4H-128D-{name}",
        "status": "completed",
        "seed": seed,
        "learning_rate": learning_rate,
        "final_train_loss": final - 0.05,
        "final_val_loss": final,
        "final_val_perplexity": math.exp(final),
        "bits_per_byte": final / math.log(2) / 3.05,
        "params_total": params,
        "params_active": params,
        "params_embedding": 131_072,
        "tokens_seen": tokens,
        "train_tokens_per_second": 5_200.0 + 10 * seed,
        "decode_tokens_per_second": decode + seed,
        "peak_memory_bytes": 812_646_400,
        "flops_per_token": 7_300_000 + params,
        "state_bytes": state,
        "wall_seconds": 157.5 + seed,
        "mfu": 0.31,
        "data_fingerprint": "d" * 16,
        "order_fingerprint": f"order-of-seed-{seed}",
        "tokenizer_fingerprint": "t" * 16,
        "components": {**components, "dropout": "residual 0"},
        "init_overridden": False,
        "init_fingerprint": f"weights-of-{name}-{seed}",
        "branch_scale": {"mixer": [0.3] * 4, "ffn": [0.3] * 4},
        "short_convolution": {"layers": [0, 1, 2, 3] if "conv_kernel" in components else []},
        "optimizer": {"class": "AdamW", "groups": [{"lr": 1e-3, "weight_decay": 0.1, "parameters": trained}]},
        "kernels": "torch",
        "machine_load": {"cores": 4, "threads": 2, "start": 0.1, "end": 2.0, "processor_share": 0.9},
        "precision": "fp32",
        "hypothesis": hypothesis,
        "sample": f"ROMEO. The {name} that speaks in measured line\nIs but a number wearing words of wine.",
        "provenance": {
            "versions": VERSIONS,
            "git_commit": "0123456789abcdef",
            "device": "cpu",
            "threads": 2,
            "command": f"hf-arch train recipe.yaml experiment.name={name}",
            "exit_reason": "completed",
        },
    }
    written = {key: value for key, value in {**written, **(results or {})}.items() if value is not None}
    recipe: dict[str, Any] = {
        "model": {"architecture": name, "hidden_size": 128, "num_hidden_layers": 4},
        "data": {"name": "shakespeare", "block_size": 256},
        "training": {"max_steps": STEPS, "learning_rate": learning_rate, "seed": seed, "weight_decay": 0.1},
        "evaluation": {"sequences": 256},
        "experiment": {"name": name, "hypothesis": hypothesis},
        "run": {"question": ["model.architecture"], "learning_rates": sweep(learning_rate)},
    }
    for section, values in (config or {}).items():
        merged = {**recipe.get(section, {}), **values}
        recipe[section] = {key: value for key, value in merged.items() if value is not None}
    folder = root / f"{name}_{zlib.crc32(repr((name, seed, learning_rate)).encode()):08x}"
    (folder / "checkpoints" / "step-100").mkdir(parents=True, exist_ok=True)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "experiment_config.json").write_text(json.dumps(recipe))
    (folder / "results.json").write_text(json.dumps(written))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(final)))
    return folder


def sweep(chosen: float) -> dict[str, Any]:
    """What `experiment.learning_rates` records of a fair choice."""
    grid = [chosen / 3, chosen, chosen * 3]
    return {
        "grid": [3e-4, 1e-3, 3e-3],
        "chosen": grid[1],
        "at_edge": False,
        "selection_rows": "even",
        "claim_rows": "odd",
    }


def curve(final: float) -> list[dict[str, Any]]:
    """Logging rows every 10 steps, evaluations every 20, falling to `final`."""
    rows: list[dict[str, Any]] = []
    for step in range(10, STEPS + 1, 10):
        loss = final + 2.6 * math.exp(-step / 20)
        rows.append(
            {
                "step": step,
                "loss": loss,
                "learning_rate": 1e-3 * (1 - (step - 10) / STEPS),
                "grad_norm": 0.8,
                "tokens_per_second": 5200.0,
            }
        )
        if step % 20 == 0:
            rows.append({"step": step, "val_loss": loss + 0.02 * math.exp(-step / 90)})
    return rows


def write_suite(root: Path, seeds: int = 3) -> Path:
    """Four architectures x `seeds`, and one more run of mamba that failed."""
    for name in ARCHITECTURES:
        for seed in range(1, seeds + 1):
            write_run(root, name, seed)
    write_failed_run(root)
    return root


def write_failed_run(root: Path, name: str = "mamba", seed: int = 9) -> Path:
    """A run that crashed before it measured anything."""
    return write_run(
        root,
        name,
        seed,
        results={
            "status": "failed",
            "final_val_loss": None,
            "final_train_loss": None,
            "provenance": {"versions": VERSIONS, "device": "cpu", "exit_reason": "Traceback ...\nMemoryError: no room"},
        },
    )
