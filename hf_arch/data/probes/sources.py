"""Where published settings of probes come from, and what their sources train with: a setting named after a source is
learned as its authors learned it, unless a recipe says otherwise.

Zoology (Arora et al. 2023, arXiv 2312.04927, figure 2 and its published configuration), MAD (Poli et al. 2024, arXiv
2403.17844, and its published code), and Gu and Dao (2023, arXiv 2312.00752, appendix E.1). Rates and decays that a
source swept are in `sweep`: it reports the best of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ProbeSource:
    """How one source builds and trains.

    training: names of TrainingArguments. model: fields of any config; attention: further ones of models of attention.
    sweep: {key of `training`: values}, of which the source reports the best.
    stop_accuracy: training ends above it; None where the source trains to the end.
    mad_decoder: compression is read by MAD's two-layer decoder.
    """

    name: str
    training: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    attention: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stop_accuracy: float | None = None
    mad_decoder: bool = False


_PLAIN_ADAMW = {"adam_beta1": 0.9, "adam_beta2": 0.999, "max_grad_norm": 0.0, "warmup_steps": 0}

ZOOLOGY = ProbeSource(
    name="zoology",
    training={**_PLAIN_ADAMW, "weight_decay": 0.1, "num_train_epochs": 64, "lr_scheduler_type": "cosine"},
    model={
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "embedding_dropout": 0.1,
        "rescale_residual_init": True,
        "tie_word_embeddings": True,
    },
    attention={"position": "learned", "attention_dropout": 0.1},
    sweep={"learning_rate": (1e-4, 4.6e-4, 2.2e-3, 1e-2)},
    stop_accuracy=0.99,
)
MAD_SOURCE = ProbeSource(
    name="mad",
    training={
        **_PLAIN_ADAMW,
        "num_train_epochs": 200,
        "per_device_train_batch_size": 128,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-6},
    },
    model={"norm": "layernorm", "norm_eps": 1e-5},
    sweep={"learning_rate": (1e-4, 5e-4, 1e-3), "weight_decay": (0.0, 0.1)},
    mad_decoder=True,
)
GU_DAO = ProbeSource(
    name="gu-dao",
    training={**_PLAIN_ADAMW, "weight_decay": 0.0, "per_device_train_batch_size": 64, "lr_scheduler_type": "constant"},
    sweep={"learning_rate": (1e-4,)},
)
