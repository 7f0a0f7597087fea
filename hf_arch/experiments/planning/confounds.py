"""What separates two models besides the question, as far as it shows before anything is trained.

Found from the built models, plugins included: depthwise causal convolutions over a few tokens, what each branch writes
next to its stream at initialisation, training FLOPs. The names are those of the audit's checks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

import hf_arch
from hf_arch.runs.limits import BRANCH_RATIO, FLOPS_RATIO
from hf_arch.training.branches import Ratios, largest_gap, measure_branches
from hf_arch.training.first_look import first_look

CONVOLUTION = "short convolution"
FLOPS = "flops"
BRANCHES = "branch scale"
RATE = "learning rate"
EMBEDDING = "embedding scale"
EMBEDDING_KEYS = ("embedding_multiplier", "logits_scaling")


@dataclass(frozen=True)
class ModelFacts:
    """One model at initialisation.

    convolved: whether a layer has a short convolution. flops: of training, per token. branches: ratios by layer.
    embedding: what embeddings are multiplied by, and logits divided, of `EMBEDDING_KEYS`.
    """

    convolved: bool
    flops: float
    branches: Ratios
    embedding: tuple[float, ...] = (1.0, 1.0)


def examine(config: PreTrainedConfig, ids: Tensor, seed: int) -> ModelFacts:
    """Builds the model of a config as a run with this seed would, and looks at it on the token rows ids [B, T]."""
    model = initial_model(config, seed)
    flops = hf_arch.cost(config, ids.shape[1]).flops_per_token_train
    convolved = bool(first_look(model, ids)["short_convolution"]["layers"])
    embedding = tuple(float(getattr(config, key, 1.0)) for key in EMBEDDING_KEYS)
    return ModelFacts(convolved, float(flops), measure_branches(model, ids), embedding)


def initial_model(config: PreTrainedConfig, seed: int) -> nn.Module:
    """The model of a config with its first weights, on the CPU, without moving torch's own random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def confounds(first: ModelFacts, second: ModelFacts) -> list[str]:
    """The names of what separates the two."""
    found = []
    if first.convolved != second.convolved:
        found.append(CONVOLUTION)
    if max(first.flops, second.flops) >= FLOPS_RATIO * min(first.flops, second.flops):
        found.append(FLOPS)
    if first.embedding != second.embedding:
        found.append(EMBEDDING)
    if largest_gap(first.branches, second.branches) > BRANCH_RATIO:
        found.append(BRANCHES)
    return found
