"""The page of the atlas and the README's table, from the records alone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from scipy.stats import false_discovery_control

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.groups import Group
from hf_arch.core.errors import ConfigError
from hf_arch.runs.record import NUMBERS, RunRecord
from tools.atlas_records import RECIPES, RECORDS, ROOT, TASKS, lines, restore

PAGE = ROOT / "docs" / "atlas.md"


def comparisons(records: Path = RECORDS) -> dict[str, Comparison]:
    """The comparison of every task whose baseline is recorded. Raises ConfigError where none is."""
    compared = {task: found for task in TASKS if (found := _compared(task, records)) is not None}
    if not compared:
        raise ConfigError(f"{records}: no run that is compared is recorded yet; first: python -m tools.atlas run text")
    return compared


def page(records: Path = RECORDS, compared: Mapping[str, Comparison] | None = None) -> str:
    """The page as Markdown, from the records alone; `compared`: their `comparisons`, where they are at hand."""
    compared = comparisons(records) if compared is None else compared
    parts = [_HEAD, _overview(compared)]
    for task in TASKS:
        table = _section(compared[task]) if task in compared else ""
        parts.append("\n\n".join(filter(None, [f"## {task}", _state(task, records), table])))
    if (notes := records / "notes.txt").is_file():
        parts.append(notes.read_text(encoding="utf-8"))
    return "\n".join(parts)


START, END = "<!-- atlas: start -->", "<!-- atlas: end -->"
_SHOWN = (
    *("llama", "gpt2", "forgetting_transformer", "path_attention", "nsa", "gla", "retnet", "hgrn2", "rwkv7"),
    *("delta_net", "gated_delta_net", "gated_delta_product", "comba", "kda", "mamba", "mamba2", "mamba3", "griffin"),
)


def fill_readme(text: str, records: Path = RECORDS, compared: Mapping[str, Comparison] | None = None) -> str:
    """A README with the table of well-known architectures on every task that is complete between its two comments, best
    at the first of them first. `compared` as in `page`.

    Raises ConfigError for a README without the comments, or where no task is complete.
    """
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ConfigError(f"README.md: has to hold the lines {START!r} and {END!r} once each, in that order")
    compared = comparisons(records) if compared is None else compared
    complete = {task: one for task, one in compared.items() if not _state(task, records)}
    if not complete:
        raise ConfigError(f"{records}: no task has all of its runs yet; first: python -m tools.atlas run text")
    best = next(iter(complete.values()))
    named = {f"{task}, {one.metric_name}": one for task, one in complete.items()}
    rows = [["mean of three seeds ± its 95 % interval", *named], ["---", *["--:"] * len(named)]]
    for name in [group.name for group in _own_groups(best) if group.name in _SHOWN]:
        rows.append([f"`{name}`", *(_cell(one, name) for one in named.values())])
    return f"{text.split(START)[0]}{START}\n\n{_table(rows)}\n{END}{text.split(END)[1]}"


_HEAD = """# Atlas: every architecture at one small size

<!-- made by `python -m tools.atlas page` from docs/atlas/*.jsonl; edits are lost -->

Each architecture has about a million parameters (fewer where a task has few tokens), matched to llama's. Its learning
rate is chosen in a separate sweep, with a seed and rows that the comparison does not use; each number is the mean over
seeds with its 95 % interval. The last column names what besides the architecture's idea may explain its difference from
llama, by the checks of the [audit](experiments.md): such a difference is *confounded* and decides nothing. At this
size and budget the ranking says how fast small models learn, not how good large ones become.

The comparison with llama is seed by seed. Its interval is that of the one difference; an architecture is called better
or worse by the procedure of Benjamini and Hochberg (1995) over all rows of the table, which keeps the expected share of
false ones among those called so at 5 %. With three seeds that asks for a difference far larger than their spread. The
claims below each table, made before anything ran, are a family of their own, corrected by Holm's procedure.

This page is generated from the records in `docs/atlas/` by `python -m tools.atlas page`.
`python -m tools.atlas run TASK` (recipes in `recipes/atlas/`) trains a task and resumes from its records, at the commit
that made them; move `docs/atlas/TASK.jsonl` away to start over.
"""


def _state(task: str, records: Path) -> str:
    """What is missing of a task; empty where every architecture has all of its seeds."""
    found = list(lines(records / f"{task}.jsonl"))
    if not found:
        return "Not trained yet.\n"
    planned = yaml.safe_load((RECIPES / f"atlas_{task}.yaml").read_text(encoding="utf-8"))["experiment"]
    asked = planned["seeds"] * len(planned["runs"])
    compared = sum(line["results"]["name"] in planned["runs"] for line in found if "config" in line)
    sweep = sum("config" not in line for line in found)
    if compared >= asked:
        return ""
    return f"Not complete: {compared} of {asked} compared runs are recorded, and {sweep} of the sweep of rates.\n"


def _overview(compared: Mapping[str, Comparison]) -> str:
    """Architectures against tasks."""
    tasks = list(compared)
    names = sorted({group.name for one in compared.values() for group in _own_groups(one)})
    rows = [["architecture", *tasks], ["---", *["--:"] * len(tasks)]]
    for name in names:
        rows.append([name, *(_cell(compared[task], name) for task in tasks)])
    metrics = "; ".join(f"{task}: {compared[task].metric_name}" for task in tasks)
    return f"## Who is best at what\n\n{_table(rows)}\n{metrics}.\n"


def _cell(comparison: Comparison, name: str) -> str:
    group = next((group for group in comparison.groups if group.name == name and group.counted), None)
    return "" if group is None else _measured(comparison, group)


def _measured(comparison: Comparison, group: Group) -> str:
    interval = group.interval(comparison.metric)
    return "failed" if interval is None else interval_text(interval)


def _section(comparison: Comparison) -> str:
    """One task: every architecture, best first, then what its controls leave."""
    baseline = comparison.group(comparison.baseline or comparison.groups[0].name).reference
    against = _against(comparison, baseline.name)
    head = ["run", comparison.metric_name, "against " + baseline.name, "seeds", "rate", "parameters", "FLOPs", "state"]
    rows = [[*head, "confounds"], ["---", "--:", "---", *["--:"] * 5, "---"]]
    for group in comparison.groups:
        run = group.reference
        flops = (run.flops_per_token or 0) / (baseline.flops_per_token or 1)
        rows.append(
            [
                group.name,
                _measured(comparison, group),
                against.get(group.name, ""),
                str(len(group.counted)) + (f", {group.failed} failed" if group.failed else ""),
                "" if run.learning_rate is None else f"{run.learning_rate:g}",
                _number("params_total", run),
                f"{flops:.2f}x",
                _number("state_bytes", run),
                _confounds(comparison, group.name, baseline.name),
            ]
        )
    claims = [f"- {verdict.claim}: **{verdict.outcome}**. {verdict.evidence}" for verdict in comparison.verdicts]
    controls = [f"- {control.sentence}" for control in comparison.controls]
    conditions = (
        f"{_number('steps', baseline)} optimiser steps, {_number('tokens_seen', baseline)} tokens, "
        f"{baseline.precision}, commit {str(baseline.provenance.get('git_commit'))[:7]}, "
        f"{baseline.provenance.get('device')}."
    )
    return "\n\n".join(filter(None, [conditions, _table(rows), "\n".join(claims), "\n".join(controls)])) + "\n"


def _against(comparison: Comparison, baseline: str) -> dict[str, str]:
    """How every run stands to the baseline, in words: {name: text}; called better or worse at a false discovery rate of
    5 % over all of them."""
    found = {group.name: comparison.pair(group.name, baseline) for group in comparison.groups if group.name != baseline}
    pairs = {name: pair for name, pair in found.items() if pair is not None}
    tested = {name: pair.p_value for name, pair in pairs.items() if pair.p_value is not None}
    for name, q in zip(tested, false_discovery_control(list(tested.values())).tolist() if tested else (), strict=True):
        pairs[name] = replace(pairs[name], p_adjusted=q, family=len(tested), factor=1.0)
    words = {name: pair.brief for name, pair in pairs.items()}
    for name, pair in pairs.items():
        if pair.verdict in ("better", "worse") and comparison.confounding_checks(name, baseline):
            words[name] += ", confounded"
    return {**words, baseline: "baseline"}


def _confounds(comparison: Comparison, name: str, baseline: str) -> str:
    return "" if name == baseline else ", ".join(comparison.confounding_checks(name, baseline))


def _number(key: str, run: RunRecord) -> str:
    return NUMBERS[key].show(run.numbers.get(key))


def _own_groups(comparison: Comparison) -> list[Group]:
    return [group for group in comparison.groups if not group.reference.experiment.get("control")]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows) + "\n"


def _compared(task: str, records: Path) -> Comparison | None:
    """The comparison of a task's records; None before the run is recorded that the others are compared to."""
    seen: dict[tuple[str, int | None], str] = {}
    baselines: set[str | None] = set()
    for line in lines(records / f"{task}.jsonl"):
        run = (line["results"]["name"], line["results"].get("seed"))
        baselines.add(line.get("config", {}).get("run", {}).get("baseline"))
        if "config" in line and seen.setdefault(run, line["folder"]) != line["folder"]:
            raise ConfigError(
                f"{records / f'{task}.jsonl'}: {line['folder']} and {seen[run]} are the same run of two versions of "
                "the recipe: remove one"
            )
    if not (baselines - {None}) <= {name for name, _ in seen}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return compare_runs(folder) if restore(task, Path(folder), records, sweep=False) else None
