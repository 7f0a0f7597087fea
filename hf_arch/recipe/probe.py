"""`probe`: a synthetic task in place of `data`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from hf_arch.core.errors import ConfigError, UnknownKeyError, near_ones
from hf_arch.recipe.sections import parse_section

if TYPE_CHECKING:
    from hf_arch.data.probes import ProbeData, ProbeSetting


def parse_probe(cls: type[ProbeOptions], values: object) -> ProbeOptions:
    """The section as an instance of `cls`, from plain values. Raises `ConfigError` as `parse_section` does; where a key
    of it is, or reads like, an option of the task, that is named."""
    try:
        return parse_section(cls, values, "probe")
    except UnknownKeyError as error:
        from hf_arch.data.probes import PROBES

        task = values.get("task") if isinstance(values, Mapping) else None
        if not isinstance(task, str) or task not in PROBES:
            raise
        known = {*inspect.signature(PROBES[task].generate).parameters, "examples"} - {"rng"}
        near = near_ones(str(error.value), known, most=1)
        if error.nearest is not None and error.value not in known:
            raise
        hint = f"nearest: 'probe.options.{near[0]}'; " if near else ""
        raise ConfigError(
            f"probe: unknown key {error.value!r}; {hint}allowed: {', '.join(error.allowed or ())}; in options of "
            f"{task}: {', '.join(sorted(known))}",
            field="probe",
            value=error.value,
        ) from None


@dataclass(frozen=True)
class ProbeOptions:
    """A synthetic task instead of text: `task` at its `setting`, with other `options` for its generator.

    setting: `cpu`, a twin of the task for two cores, `paper`, as it was published, or the name of a source: `zoology`,
        `zoology-random`, `mad`, `gu-dao`.
    stop_accuracy: training ends early above this share of right answers on the test rows; null: as the source of the
        setting does (0.99 where there is none; MAD trains to the end).
    """

    task: str
    setting: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    stop_accuracy: float | None = None

    def __post_init__(self) -> None:
        from hf_arch.data.probes import PROBES

        PROBES.get(self.task, "probe.task").setting(self.setting)
        if self.stop_accuracy is not None and not 0 < self.stop_accuracy <= 1:
            raise ConfigError(f"probe.stop_accuracy: expected a share above 0, up to 1, got {self.stop_accuracy}")
        self.data("test", seed=0, examples=1)  # options that the generator does not have, or that do not go together

    @property
    def settings(self) -> ProbeSetting:
        """The setting of that name."""
        from hf_arch.data.probes import PROBES

        setting: ProbeSetting = PROBES[self.task].setting(self.setting)
        return setting

    def data(self, split: Literal["train", "test"], seed: int, **overrides: Any) -> ProbeData:
        """The rows of a split for this seed."""
        from hf_arch.data.probes import PROBES

        try:
            return PROBES[self.task].data(split, seed, self.settings, **{**self.options, **overrides})
        except ConfigError as error:
            raise ConfigError(f"probe.options: {error}") from error
