"""What every synthetic probe is: a seeded generator, the settings to try it at, and rows with marked answers.

probe = PROBES["mqar"]
train = probe.data("train", seed=0)                                  # the published setting
small = probe.data("test", seed=0, setting=probe.cpu)                # minutes on two cores
long = PROBES["induction"].data("test", seed=0, sequence_length=1024)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_origin, get_type_hints

import numpy as np
import torch

from hf_arch.core.errors import ConfigError, choice_error, unknown_key_error
from hf_arch.core.options import mistyped_by, with_whole_numbers
from hf_arch.data.probes.sources import ProbeSource

IGNORE = -100

Split = Literal["train", "test"]
_SPLITS = ("train", "test")


@dataclass(frozen=True)
class ProbeData:
    """Rows of one probe.

    inputs: int64 [N, T].
    labels: int64 [N, T], -100 except at answers. They are aligned: the logits at t answer `labels[:, t]` (give them to
        a model as `shift_labels`, or compare with its argmax; nothing is to be shifted).
    vocab_size: tokens and answers lie below it.
    from_last_state: all answers are to be read from the model's state at the last position alone, by a decoder that is
        told t. Only compression asks for this; elsewhere each answer is read at its own position.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    vocab_size: int
    from_last_state: bool = False


@dataclass(frozen=True)
class ProbeSetting:
    """Options of a generator, and how many rows to learn from and to be scored on.

    source: whose setting this is, where it is a published one; it is then learned as there. training: what this setting
    alone adds to it. train_options, test_options: options that differ while learning and when scored.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    train_examples: int = 12_800
    test_examples: int = 1_280
    source: ProbeSource | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    test_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Any]:
        """What the `training` section says where a recipe does not."""
        return {**({} if self.source is None else self.source.training), **self.training}


@dataclass(frozen=True, repr=False)
class Probe:
    """A generator with its published settings.

    generate: called as generate(rng, examples, **options).
    settings: the baseline, then the harder ones; a score is the mean over them.
    cpu: a twin that keeps the question and runs in minutes on two cores.
    named: settings by the names of their sources; `paper` is the first of `settings`.
    test_options: options that differ when the model is scored.
    """

    name: str
    question: str
    generate: Callable[..., ProbeData]
    settings: tuple[ProbeSetting, ...]
    cpu: ProbeSetting
    test_options: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, ProbeSetting] = field(default_factory=dict)

    def setting(self, name: str) -> ProbeSetting:
        """`cpu`, `paper` (the first published one) or one named after its source. Raises `ConfigError` for others."""
        first = self.settings[0]
        own = {} if first.source is None else {first.source.name: first}
        known = {"cpu": self.cpu, "paper": first, **own, **self.named}
        if name not in known:
            raise choice_error("probe.setting", name, known)
        return known[name]

    def _types(self) -> dict[str, Any]:
        """Types of the generator's options, as it declares them; the words that one may be it names itself."""
        try:
            hints = get_type_hints(getattr(self.generate, "func", self.generate))  # of a functools.partial
        except NameError:  # a plugin's, imported for its type checker alone
            return {}
        return {name: with_whole_numbers(hint) for name, hint in hints.items() if get_origin(hint) is not Literal}

    def __repr__(self) -> str:
        function = getattr(self.generate, "func", self.generate)
        return f"Probe({self.name!r}, {function.__module__}.{function.__qualname__})"

    def data(self, split: Split, seed: int, setting: ProbeSetting | None = None, **overrides: Any) -> ProbeData:
        """The rows of a split; a function of the arguments. Splits and seeds draw from separate random streams.

        Args:
            split: `train` or `test`.
            seed: which rows.
            setting: one of `settings` (by default the first) or `cpu`.
            overrides: options of the generator, or `examples`.

        Raises:
            ConfigError: an unknown split or option, one of a wrong type, or options that do not fit together.
        """
        if split not in _SPLITS:
            raise choice_error("split", split, _SPLITS)
        setting = setting or self.settings[0]
        of_split = {**self.test_options, **setting.test_options} if split == "test" else setting.train_options
        options = {**setting.options, **of_split, **overrides}
        examples = options.pop("examples", setting.train_examples if split == "train" else setting.test_examples)
        if not isinstance(examples, int) or examples < 1:
            raise ConfigError(f"{self.name}.examples: {examples!r} is not allowed; allowed: a whole number above 0")
        known = [name for name in inspect.signature(self.generate).parameters if name not in ("rng", "examples")]
        for name in options:
            if name not in known:
                raise unknown_key_error(self.name, name, [*known, "examples"])
        if wrong := mistyped_by(self._types(), options):
            raise wrong.within(self.name, ".")
        return self.generate(np.random.default_rng([seed, _SPLITS.index(split)]), examples, **options)


def vary(
    options: Mapping[str, Any],
    *,
    train_examples: int = 12_800,
    fewer: tuple[int, ...] = (),
    source: ProbeSource | None = None,
    train_options: Mapping[str, Any] | None = None,
    **axes: tuple[Any, ...],
) -> tuple[ProbeSetting, ...]:
    """The baseline `options`, then each axis changed alone: its options, and at last `fewer` rows to learn from."""
    changed = [{**options, axis: value} for axis, values in axes.items() for value in values]
    base = ProbeSetting(options, train_examples, source=source, train_options=train_options or {})
    return (
        base,
        *(replace(base, options=variant) for variant in changed),
        *(replace(base, train_examples=examples) for examples in fewer),
    )


def to_data(inputs: np.ndarray, labels: np.ndarray, vocab_size: int, *, from_last_state: bool = False) -> ProbeData:
    """Arrays of any integer type [N, T] as ProbeData."""
    first, second = (torch.from_numpy(array.astype(np.int64, copy=False)) for array in (inputs, labels))
    return ProbeData(first, second, vocab_size, from_last_state)


def require(met: bool, field_name: str, value: object, allowed: str) -> None:
    """Raises ConfigError, naming the option and what is allowed, unless `met`."""
    if not met:
        raise ConfigError(f"{field_name}: {value!r} is not allowed; allowed: {allowed}")


def draw_distinct(rng: np.random.Generator, rows: int, count: int, size: int) -> np.ndarray:
    """`count` different numbers below `size` in each row, every ordered choice equally likely; int64 [rows, count].

    Floyd's algorithm: time and memory go with `count`, not with `size`.
    """
    drawn = np.empty((count, rows), dtype=np.int64)
    for number in range(count):
        last = size - count + number
        candidate = rng.integers(0, last + 1, rows)
        taken = (drawn[:number] == candidate).any(axis=0)
        drawn[number] = np.where(taken, last, candidate)
    # Floyd draws a fair set, in an order that is not.
    shuffle = np.argsort(rng.random((rows, count), dtype=np.float32), axis=1)
    return np.take_along_axis(drawn.T, shuffle, axis=1)
