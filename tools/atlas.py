"""The atlas: every architecture at one small size on text and on probes; its runs, their records, and the page.

    python -m tools.atlas run text [--workers 2] [--hours 2]   # restores the records, trains what is missing, stores
    python -m tools.atlas page                                 # docs/atlas.md from the records, and nothing else

The recipes are in `recipes/atlas/`, one per task. `docs/atlas/TASK.jsonl` has one line per finished run: its folder,
its results.json and its experiment_config.json (of a run that only chose a learning rate, its results alone). A line is
written when its run ends, so that a run that was trained once is never trained again, on this machine or another;
records made by a different version of the code are refused, since the audit would call that a confound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_arch.analysis.columns import interval_text
from hf_arch.analysis.compare import compare_runs
from hf_arch.analysis.comparison import Comparison, Group
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.files import read_json, write_atomic, write_json
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE, run_folders
from hf_arch.runs.provenance import source_digest
from hf_arch.runs.record import NUMBERS, RunRecord

ROOT = Path(__file__).resolve().parent.parent
RECIPES, RECORDS, PAGE = ROOT / "recipes" / "atlas", ROOT / "docs" / "atlas", ROOT / "docs" / "atlas.md"
TASKS = ("text", "mqar", "selective_copying", "parity", "s5", "memorization")
_LEFT_OUT = ("sample", "precision_measured", "attribution")  # long, and read by nothing that the page says
_SELECTION = "learning_rates"


def store(task: str, results: Path, records: Path = RECORDS) -> int:
    """Adds every run of `results` that completed to the records of a task; returns how many there are now."""
    lines = {line["folder"]: line for line in _lines(records / f"{task}.jsonl")}
    for folder in run_folders(results):
        name = folder.relative_to(results).as_posix()
        record = RunRecord.load(folder)
        if name in lines or not record.completed:
            continue
        found = {key: value for key, value in read_json(folder / RESULTS_FILE).items() if key not in _LEFT_OUT}
        lines[name] = {"folder": name, "results": found}
        if not name.startswith(f"{_SELECTION}/"):
            lines[name]["config"] = read_json(folder / CONFIG_FILE)
    text = "".join(json.dumps(lines[name], separators=(",", ":"), sort_keys=True) + "\n" for name in sorted(lines))
    for folder in (results.resolve(), ROOT):  # where they lie on this machine says nothing on another
        text = text.replace(f"{folder}{os.sep}", "")
    records.mkdir(parents=True, exist_ok=True)
    write_atomic(records / f"{task}.jsonl", text)
    return len(lines)


def restore(task: str, results: Path, records: Path = RECORDS, *, sweep: bool = True) -> int:
    """Writes the recorded runs of a task as finished run folders, where there is none, those of the sweep of learning
    rates too unless `sweep` is False; returns how many were written."""
    written = 0
    for line in _lines(records / f"{task}.jsonl"):
        folder = results / line["folder"]
        if (folder / RESULTS_FILE).exists() or not (sweep or "config" in line):
            continue
        if "config" in line:
            write_json(folder / CONFIG_FILE, line["config"])
        write_json(folder / RESULTS_FILE, line["results"])
        written += 1
    return written


def check_source(task: str, records: Path = RECORDS) -> None:
    """Raises ConfigError where a record of the task was made by different code than the package has now."""
    for line in _lines(records / f"{task}.jsonl"):
        made = line["results"].get("provenance", {})
        if made.get("source_sha256") != source_digest():
            raise ConfigError(
                f"{records / f'{task}.jsonl'}: {line['folder']} was made by different code: to resume, check out "
                f"commit {made.get('git_commit')}; to start over, move the file away"
            )


def train(task: str, results: Path, workers: int, hours: float | None) -> int:
    """Trains what is missing of a task and stores each run as it ends; returns the exit code of `hf-arch run`.

    After `hours` the set is asked to stop, by SIGTERM, which processes in a shell's background receive too; the next
    call resumes it.
    """
    check_source(task)
    restore(task, results)
    recipe = RECIPES / f"atlas_{task}.yaml"
    command = [sys.executable, "-m", "hf_arch", "run", str(recipe), "--controls", "--results-dir", str(results)]
    child = subprocess.Popen(
        [*command, "--workers", str(workers)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    ends = None if hours is None else time.monotonic() + 3600 * hours
    while child.poll() is None:
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            store(task, results)
            if ends is not None and time.monotonic() > ends:
                child.terminate()
                ends = None
    print(f"{task}: {store(task, results)} runs recorded")
    return child.returncode


def page(records: Path = RECORDS) -> str:
    """The page as Markdown, from the records alone."""
    compared = {task: found for task in TASKS if (found := _compared(task, records)) is not None}
    if not compared:
        raise ConfigError(f"{records}: no run that is compared is recorded yet; first: python -m tools.atlas run text")
    parts = [_HEAD, _overview(compared)]
    for task in TASKS:
        table = _section(compared[task]) if task in compared else ""
        parts.append("\n\n".join(filter(None, [f"## {task}", _state(task, records), table])))
    if (notes := records / "notes.txt").is_file():
        parts.append(notes.read_text(encoding="utf-8"))
    return "\n".join(parts)


_HEAD = """# Atlas: every architecture at one small size

<!-- made by `python -m tools.atlas page` from docs/atlas/*.jsonl; edits are lost -->

Each architecture has about a million parameters (fewer where a task has few tokens), matched to llama's. Its learning
rate is chosen in a separate sweep, with a seed and rows that the comparison does not use; each number is the mean over
seeds with its 95 % interval. Where something other than the architecture may explain a difference, the page names it:
such a difference is *confounded* and decides nothing. At this size and budget the ranking says how fast small models
learn, not how good large ones become.
Each interval is that of one architecture's own mean. The comparison with llama is corrected for all architectures at
once: with three seeds, a difference is significant only if it is far larger than their spread.
This page is generated from the records in `docs/atlas/` by `python -m tools.atlas page`.
`python -m tools.atlas run TASK` (recipes in `recipes/atlas/`) trains a task and resumes from its records, at the commit
that made them; move `docs/atlas/TASK.jsonl` away to start over.
"""


def _state(task: str, records: Path) -> str:
    """What is missing of a task; empty where every architecture has all of its seeds."""
    lines = list(_lines(records / f"{task}.jsonl"))
    if not lines:
        return "Not trained yet.\n"
    planned = yaml.safe_load((RECIPES / f"atlas_{task}.yaml").read_text(encoding="utf-8"))["experiment"]
    asked = planned["seeds"] * len(planned["runs"])
    compared = sum(line["results"]["name"] in planned["runs"] for line in lines if "config" in line)
    sweep = sum("config" not in line for line in lines)
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
    head = ["run", comparison.metric_name, "against " + baseline.name, "seeds", "rate", "parameters", "FLOPs", "state"]
    rows = [head, ["---", "--:", "---", "--:", "--:", "--:", "--:", "--:"]]
    for group in comparison.groups:
        run = group.reference
        flops = (run.flops_per_token or 0) / (baseline.flops_per_token or 1)
        rows.append(
            [
                group.name,
                _measured(comparison, group),
                comparison.versus_baseline(group.name),
                str(len(group.counted)) + (f", {group.failed} failed" if group.failed else ""),
                "" if run.learning_rate is None else f"{run.learning_rate:g}",
                _number("params_total", run),
                f"{flops:.2f}x",
                _number("state_bytes", run),
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


def _number(key: str, run: RunRecord) -> str:
    return NUMBERS[key].show(run.numbers.get(key))


def _own_groups(comparison: Comparison) -> list[Group]:
    return [group for group in comparison.groups if not group.reference.experiment.get("control")]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows) + "\n"


def _compared(task: str, records: Path) -> Comparison | None:
    """The comparison of a task's records; None before a run of it is recorded that is compared."""
    seen: dict[tuple[str, int | None], str] = {}
    for line in _lines(records / f"{task}.jsonl"):
        run = (line["results"]["name"], line["results"].get("seed"))
        if "config" in line and seen.setdefault(run, line["folder"]) != line["folder"]:
            raise ConfigError(
                f"{records / f'{task}.jsonl'}: {line['folder']} and {seen[run]} are the same run of two versions of "
                "the recipe: remove one"
            )
    with tempfile.TemporaryDirectory() as folder:
        return compare_runs(folder) if restore(task, Path(folder), records, sweep=False) else None


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_file():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{file}: line {number} is not JSON: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.atlas", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what is missing of one task, and record it")
    run.add_argument("task", help=", ".join(TASKS))
    run.add_argument("--results-dir", type=Path, help="by default results/atlas/TASK")
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--hours", type=float, help="stop after this many hours; the next call resumes")
    keep = commands.add_parser("store", help="record the finished runs of a folder")
    keep.add_argument("task", help=", ".join(TASKS))
    keep.add_argument("results", type=Path)
    commands.add_parser("page", help="write docs/atlas.md")
    given = parser.parse_args(arguments)
    try:
        if given.command == "page":
            write_atomic(PAGE, page())
            return 0
        if given.task not in TASKS:
            raise choice_error("task", given.task, TASKS)
        if given.command == "store":
            print(f"{given.task}: {store(given.task, given.results)} runs recorded")
            return 0
        return train(
            given.task, given.results_dir or ROOT / "results" / "atlas" / given.task, given.workers, given.hours
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
