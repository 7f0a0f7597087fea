"""The law of each architecture that a comparison has at several sizes: fitted, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_arch.analysis.question import SIZES, changed_keys
from hf_arch.analysis.scaling import Refused, ScalingFit, fit_scaling

if TYPE_CHECKING:
    from hf_arch.analysis.groups import Group

FEWEST_SIZES = 3
NARROWEST = 1.1
"""Groups of one architecture within this factor are variants made equal in size, and no study of size."""
SAME_TOKENS = 1.01
# What a rule by size changes with the size.
BY_SIZE = (
    SIZES + r"|model\.parametrization.*|training\.(learning_rate|warmup.*|max_steps|per_device_train_batch_size"
    r"|gradient_accumulation_steps|eval_steps)"
)


@dataclass(frozen=True)
class ScalingLaw:
    """Loss against size of one architecture over the groups of these names."""

    architecture: str
    names: tuple[str, ...]
    fit: ScalingFit | Refused

    @property
    def words(self) -> str:
        """The law, or why there is none, in one sentence."""
        return self.fit.words

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: `reason` is None where the law was fitted, the numbers are None where it was not."""
        fit = self.fit if isinstance(self.fit, ScalingFit) else None
        return {
            "architecture": self.architecture,
            "groups": list(self.names),
            "words": self.words,
            "reason": self.fit.reason if isinstance(self.fit, Refused) else None,
            "offset": fit and fit.offset,
            "amplitude": fit and fit.amplitude,
            "exponent": fit and fit.alpha,
            "offset_interval": fit and list(fit.offset_interval),
            "exponent_interval": fit and list(fit.alpha_interval),
        }


def scaling_laws(groups: Sequence[Group], metric: str, lower_is_better: bool) -> list[ScalingLaw]:
    """One law for each architecture with three sizes or more; none for a metric that rises with quality, and for the
    runs of a ladder, which has laws in size and tokens."""
    if not lower_is_better:
        return []
    members: dict[str, list[Group]] = {}
    for group in groups:
        if group.mean("params_total") and group.by_seed(metric) and not group.reference.experiment.get("ladder"):
            members.setdefault(group.reference.architecture, []).append(group)
    laws = []
    for architecture, found in members.items():
        sizes = [group.mean("params_total") or 0.0 for group in found]
        if len(set(sizes)) < FEWEST_SIZES or max(sizes) < NARROWEST * min(sizes):
            continue
        losses = [list(group.by_seed(metric).values()) for group in found]
        reason = _not_one_law(found)
        fit = Refused(reason) if reason else fit_scaling(sizes, losses)
        laws.append(ScalingLaw(architecture, tuple(group.name for group in found), fit))
    return laws


def _not_one_law(groups: Sequence[Group]) -> str:
    """What besides the size differs between the groups, in words; empty where nothing does."""
    tokens = [value for group in groups if (value := group.mean("tokens_seen"))]
    if tokens and max(tokens) > SAME_TOKENS * min(tokens):
        return (
            f"the sizes were trained on {min(tokens):,.0f} to {max(tokens):,.0f} tokens; `experiment.ladder` fits both"
        )
    others = sorted(
        key
        for key in changed_keys([run for group in groups for run in group.counted])
        if not re.fullmatch(BY_SIZE, key)
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        return f"they differ in more than size: {', '.join(others[:3])}{more}"
    return ""
