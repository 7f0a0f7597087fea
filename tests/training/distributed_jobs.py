"""Trains, in each of the processes that a launcher starts, the runs that a JSON file lists, one after the other.

    torchrun --nproc-per-node 2 -m tests.training.distributed_jobs JOBS.json

A job is {"recipe": ..., "folder": ..., "resume": ...}; {"cut": [run, copy, step]} makes a copy as a kill after `step`
would have left the run.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from hf_arch.recipe.recipe import Recipe
from hf_arch.training.launch import is_main_process, leave
from hf_arch.training.run import run_training


def cut(run: Path, copy: Path, step: int) -> None:
    """`copy` is the run as it was after the checkpoint of `step`; nothing says that it went on."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model"))
    for checkpoint in (copy / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps({**results, "status": "running"}))


def do(job: dict[str, Any]) -> None:
    if "cut" in job:
        if is_main_process():
            cut(*map(Path, job["cut"][:2]), job["cut"][2])
        torch.distributed.barrier()
    else:
        recipe = Recipe.from_dict(job["recipe"])
        run_training(recipe, job["folder"], resume=job.get("resume", False), quiet=True)
        torch.distributed.barrier()  # the first is the last to finish: it writes the results


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        do(job)
    leave()
