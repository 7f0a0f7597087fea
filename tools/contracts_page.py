"""The page on what each kind of plugin has to be: `python -m tools.contracts_page > docs/contracts.md`.

For every kind of `hf-arch new`: the methods of its base class with their docstrings, the line of a recipe that names
it, and the whole file that the command writes, which tests run.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from hf_arch.cli.new import CHANGES, EVALUATION, KINDS, new_files

BASES = {
    "mixer": "hf_arch.layers.mixers.base.RecurrentMixer",
    "ffn": "hf_arch.layers.ffns.ffn.FeedForward",
    "norm": None,
    "position": "hf_arch.layers.positions.Position",
    "stream": "hf_arch.layers.streams.base.Stream",
    "site": "hf_arch.layers.sites.base.Site",
    "embedding": "hf_arch.layers.embeddings.base.Embedding",
    "depth": "hf_arch.layers.depths.base.Depth",
    "loss": "hf_arch.models.losses.base.LogitLoss",
    "optimizer": "hf_arch.optimizers.base.OptimizerBuilder",
    "schedule": "hf_arch.schedules.base.Schedule",
    "init": "hf_arch.models.init_policy.InitPolicy",
    "metric": "hf_arch.evaluation.metric.Metric",
    "column": "hf_arch.runs.columns.ReportColumn",
    "probe": "hf_arch.data.probes.probe.Probe",
}
"""Kind -> the class that a plugin subclasses, or makes a value of; None for a plain `nn.Module`."""
ARGUMENTS = {
    "optimizer": "hf_arch.optimizers.base.TrainedParameter",
    "schedule": "hf_arch.schedules.base.ScheduledRun",
    "column": "hf_arch.runs.record.RunRecord",
}
"""Kind -> a class whose values its methods are given."""
NAME = "mine"

PROSE = Path(__file__).with_suffix(".md")


def page() -> str:
    """The whole page as Markdown."""
    kinds = ", ".join(f"[{kind}](#{kind})" for kind in KINDS)
    sections = "\n".join(_section(kind) for kind in KINDS)
    return f"{PROSE.read_text(encoding='utf-8')}\nKinds: {kinds}.\n\n{sections}"


def _section(kind: str) -> str:
    text = [f"## {kind}\n"]
    base = BASES[kind]
    if base is None:
        text.append("A `torch.nn.Module` that is built as `norm(dim, eps)`.\n")
    else:
        cls = _load(base)
        text.append(f"`{base}`. {_one_line(cls)}\n")
        text.append(_methods(cls))
    if kind in ARGUMENTS:
        given = _load(ARGUMENTS[kind])
        text.append(f"`{given.__name__}`: {_one_line(given)}\n")
    text.append(f"In a recipe: {_recipe_line(kind)}\n")
    text.append(f"```python\n{new_files(kind, NAME)[f'{NAME}.py'].rstrip()}\n```\n")
    return "\n".join(text)


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _recipe_line(kind: str) -> str:
    if kind == "probe":
        return f"`probe: {{task: {NAME}}}`."
    lines = [EVALUATION.get(kind, "").strip()] if kind in EVALUATION else []
    change = CHANGES[kind]
    lines.append(change if change.split(".")[0] in ("model", "training") else f"experiment.{change}")
    return ", ".join(f"`{line.replace('example', NAME)}`" for line in lines) + "."


def _methods(cls: Any) -> str:
    rows = []
    for name, member in _members(cls):
        signature = f"{name}{_signature(member)}"
        rows.append(f"| `{signature}` | {_one_line(member)} |")
    return "| method | says |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


def _members(cls: Any) -> list[tuple[str, Any]]:
    """The documented methods and properties that the class and its bases of ours define, the class's own first."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if not base.__module__.startswith("hf_arch.") or (dataclasses.is_dataclass(base) and base is not cls):
            continue
        for name, member in vars(base).items():
            inner = getattr(member, "__func__", getattr(member, "fget", member))
            if not name.startswith("_") and inspect.isfunction(inner) and inspect.getdoc(inner):
                found.setdefault(name, member)
    return list(found.items())


def _signature(member: Any) -> str:
    if isinstance(member, property):
        return ""
    parameters = list(inspect.signature(getattr(member, "__func__", member)).parameters.values())
    if not isinstance(member, staticmethod):
        parameters = parameters[1:]
    return f"({', '.join(entry.name for entry in parameters)})"


def _one_line(entry: Any) -> str:
    inner = getattr(entry, "__func__", getattr(entry, "fget", entry))
    text = " ".join((inspect.getdoc(inner) or "").split())
    return re.sub(r"(?<!`)\|", r"\\|", text)


if __name__ == "__main__":
    print(page(), end="")
