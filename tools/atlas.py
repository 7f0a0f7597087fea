"""The atlas: every architecture at one small size on text and on probes; its runs, their records, and the page.

    python -m tools.atlas run text [--workers 2] [--hours 2]   # restores the records, trains what is missing, stores
    python -m tools.atlas page                                 # docs/atlas.md and README's table, from the records

The recipes are in `recipes/atlas/`, one per task. `docs/atlas/TASK.jsonl` has one line per finished run: its folder,
its results.json and its experiment_config.json (of a run that only chose a learning rate, its results alone). A line is
written when its run ends, so that a run that was trained once is never trained again, on this machine or another;
records made by a different version of the code are refused, since the audit would call that a confound.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.files import write_atomic
from tools.atlas_page import PAGE, comparisons, fill_readme, page
from tools.atlas_records import README, RECIPES, ROOT, TASKS, check_source, restore, store


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
    commands.add_parser("page", help="write docs/atlas.md, and the table of the README")
    given = parser.parse_args(arguments)
    try:
        if given.command == "page":
            compared = comparisons()
            made = page(compared=compared), fill_readme(README.read_text(encoding="utf-8"), compared=compared)
            for path, text in zip((PAGE, README), made, strict=True):
                write_atomic(path, text)
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
