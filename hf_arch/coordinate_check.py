"""The coordinate check of muP: whether training moves activations and logits equally as a model gets wider.

Small models of several widths take a few steps of AdamW with the groups of their parametrisation, at one learning rate.
The mean size of what training has added to each layer's output and to the logits is fitted as width^slope. Under muP
and CompleteP slopes are near 0; under the standard parametrisation they are not. (Yang et al. 2022, arXiv 2203.03466,
D.1. The logits of an untrained model shrink with width under muP: hence what is added, not the whole.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import CheckResult
from hf_arch.optimizers.base import OptimizerSettings
from hf_arch.optimizers.parameters import trained_parameters
from hf_arch.optimizers.trainer_names import TrainerOptimizer

WIDTHS = (64, 128, 256, 512)
FLAT = 0.25
"""The largest slope that counts as flat: a size that doubles while width grows 16-fold."""
LEARNING_RATE, STEPS, SEEDS = 0.01, 8, 2


def coordinate_check(
    architecture: str, changes: Mapping[str, Any] | None = None, widths: Sequence[int] = WIDTHS
) -> list[CheckResult]:
    """One result for each layer and one for the logits.

    Args:
        architecture: by name. changes: of the config, such as `parametrization`; heads grow in number with width, and
            the base width is the smallest.
    """
    sizes: dict[str, list[float]] = {}
    for width in widths:
        config = _config(architecture, width, widths[0], changes or {})
        of_seeds = [_moved(config, seed) for seed in range(SEEDS)]
        for name in of_seeds[0]:
            mean = sum(found[name] for found in of_seeds) / SEEDS
            sizes.setdefault(name, []).append(mean)
    logs = torch.tensor([float(width) for width in widths]).log2()
    results = []
    for name, values in sizes.items():
        slope = _slope(logs, torch.tensor(values).log2())
        shown = " ".join(f"{value:.3g}" for value in values)
        found = f"width^{slope:+.2f} ({shown} at {', '.join(map(str, widths))})"
        hint = "it changes with width; see `parametrization` (mup, completep), and options that fix a size"
        results.append(CheckResult(name, abs(slope) <= FLAT, found, "" if abs(slope) <= FLAT else hint))
    return results


def _config(architecture: str, width: int, base: int, changes: Mapping[str, Any]) -> Any:
    given = changes.get("parametrization", "mup")
    chosen = {"type": given} if isinstance(given, str) else dict(given)
    if chosen["type"] != "standard":
        chosen.setdefault("base_width", base)
    if chosen["type"] == "completep":
        layers = changes.get("num_hidden_layers", hf_arch.tiny_config(architecture).num_hidden_layers)
        chosen.setdefault("base_depth", layers)
    heads = max(1, width // 16)
    sizes = {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": 2 * width,
        "rescale_residual_init": False,
    }
    return hf_arch.tiny_config(architecture, **{**sizes, **changes, "parametrization": chosen})


def _moved(config: Any, seed: int) -> dict[str, float]:
    """The mean absolute change of each layer's output and of the logits by a few steps."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = TrainerOptimizer(None).build(trained_parameters(model), OptimizerSettings(LEARNING_RATE, 0.0))
    ids = torch.randint(3, config.vocab_size, (8, 24), generator=torch.Generator().manual_seed(seed))
    before = _outputs(model, ids)
    for _ in range(STEPS):
        model.train()
        optimizer.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    after = _outputs(model, ids)
    return {name: (value - before[name]).abs().mean().item() for name, value in after.items()}


@torch.no_grad()
def _outputs(model: Any, ids: Tensor) -> dict[str, Tensor]:
    out = model.eval()(ids, output_hidden_states=True, use_cache=False)
    states = {f"layer {index} output": state.float() for index, state in enumerate(out.hidden_states[1:])}
    return {**states, "logits": out.logits.float()}


def _slope(x: Tensor, y: Tensor) -> float:
    centred = x - x.mean()
    return ((centred * (y - y.mean())).sum() / centred.square().sum()).item()
