"""The `evaluation` section of a recipe: what is measured, and on which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.metrics import metric_entries


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured on the held-out text and on the trained model.

    `sequences` validation sequences are scored during training, `final_sequences` after it (null: all of them); of a
    mixture, the first ones of each corpus, in proportion to its sequences.
    `prompt` is continued by `new_tokens` tokens as the sample of the run; an empty prompt takes the first tokens of
    the validation text. `speed` measures prefill of `speed_tokens` tokens and decoding of as many. `lengths`: the loss
    by position at these lengths of context, also beyond the trained one, and `corpora`: the loss on held-out text of
    other corpora, both on as much text as `sequences` rows hold. `metrics` are registered by plugins: a name, or a
    section of a `type` and its options. `rows` are the
    validation sequences that count: all, or one of two parts, the even ones (`selection`) and the odd ones (`claim`).
    """

    sequences: int | None = 256
    final_sequences: int | None = None
    prompt: str = ""
    new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    speed: bool = True
    speed_tokens: int = 64
    lengths: tuple[int, ...] = ()
    corpora: tuple[str, ...] = ()
    metrics: tuple[str | dict[str, Any], ...] = ()
    rows: Literal["all", "selection", "claim"] = "all"

    def __post_init__(self) -> None:
        least = {"sequences": 1, "final_sequences": 1, "new_tokens": 1, "speed_tokens": 1, "temperature": 0, "top_k": 0}
        for name, allowed in least.items():
            if (value := getattr(self, name)) is not None and value < allowed:
                raise ConfigError(f"evaluation.{name}: expected at least {allowed}, got {value}")
        metric_entries(self.metrics)
        if any(length < 2 for length in self.lengths) or len(set(self.lengths)) < len(self.lengths):
            raise ConfigError(f"evaluation.lengths: expected lengths from 2, each once, got {list(self.lengths)}")
