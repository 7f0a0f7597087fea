"""Everything that this package claims of a GPU, checked and measured by one command: `bash scripts/gpu_check.sh`.

python -m tools.gpu_check [--small] [--device cuda] [--out results/gpu_check] [--minutes 9] [--only SECTION,...]

First `tests/gpu` (results against the CPU's in fp32), then each section of measurements, every one with its own limit
of time; what fails is noted and the rest goes on. `gpu_check.json` is written anew after each, `gpu_check.md` holds the
tables of docs/performance.md. Exit code 1 where anything failed. `--small` takes sizes for a CPU, to test this itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hf_arch.core.files import write_json
from hf_arch.core.registry import MIXERS
from hf_arch.evaluation.loading import parse_device
from hf_arch.runs.provenance import environment
from tools import gpu_models, gpu_recurrences
from tools.gpu_report import markdown, summarise_tests
from tools.gpu_timing import Bench, Row, limit_autotuning, run_section

ROOT = Path(__file__).parents[1]
CONFIGURATIONS = 1
"""Of each kernel of FLA that its autotuner may choose among: with four, tuning alone took ten minutes."""
TESTS, WARM_UP = "tests", "warm_up"
TEST_SECONDS, WARM_UP_SECONDS = 190.0, 60.0
SECTIONS: dict[str, tuple[float, Callable[[Bench], Iterator[Row]]]] = {
    "machine": (10, gpu_models.machine),
    "training": (100, gpu_models.training),
    "crossover": (30, gpu_models.crossover),
    "decoding": (30, gpu_models.decoding),
    "mixers": (60, gpu_models.mixers),
    "recurrences": (80, gpu_recurrences.recurrences),
    "losses": (80, gpu_models.losses),
}
"""Name -> (seconds at most, rows)."""
SMALL_TESTS = "narrow and torch and mild and (vector or mamba2) or chunked or (gla and fp32_equals)"


def run_tests(bench: Bench, out: Path, seconds: float) -> Row:
    """`tests/gpu` in a process of its own, on several workers where xdist is installed."""
    record = out / "tests.jsonl"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "--no-header", "--tb=short"]
    command += ["--gpu-device", str(bench.device), "--gpu-record", str(record.resolve())]
    if bench.small:
        command += ["-k", SMALL_TESTS]
    elif find_spec("xdist"):
        command += ["-n", str(max(1, min(12, (os.cpu_count() or 1) - 2))), "--dist", "loadgroup"]
    start, status = time.perf_counter(), "ok"
    with open(out / "tests.log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            if process.wait(seconds) != 0:
                status = "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            status = "out of time"
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    if status == "ok" and not rows:
        status = "failed"
    return {"status": status, "seconds": round(time.perf_counter() - start, 1), **summarise_tests(rows)}


def warm_up(bench: Bench, seconds: float) -> Row:
    """Compile FLA's kernels in many processes: tuned results lie in Triton's cache when the sections want them."""
    tasks = [("op", name) for name in gpu_recurrences.WITH_KERNEL] + [("mixer", name) for name in MIXERS]
    start, done = time.perf_counter(), 0
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max(1, min(12, (os.cpu_count() or 1) - 2)), mp_context=context)
    try:
        futures = [pool.submit(_warm_up_one, str(bench.device), kind, name) for kind, name in tasks]
        done = len(wait(futures, seconds).done)
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    return {"status": "ok", "seconds": round(time.perf_counter() - start, 1), "done": done, "tasks": len(tasks)}


def _warm_up_one(device: str, kind: str, name: str) -> None:
    limit_autotuning(CONFIGURATIONS)
    bench = Bench(torch.device(device), False)
    try:
        gpu_recurrences.warm_up(bench, name) if kind == "op" else gpu_models.warm_up(bench, name)
    except Exception as error:  # the section says what is wrong
        print(f"{kind} {name}: {error}", file=sys.stderr)


def check(bench: Bench, out: Path, minutes: float, only: list[str], note: Callable[[str], None]) -> dict[str, Any]:
    """Runs everything (or the parts in `only`) and returns what gpu_check.json holds."""
    end = time.perf_counter() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": "bash scripts/gpu_check.sh" + (" --small" if bench.small else ""),
        "environment": environment(bench.device),
        "small": bench.small,
        "sections": {},
    }

    def run(name: str, seconds: float, part: Callable[[float], Row]) -> None:
        left = end - time.perf_counter()
        if only and name not in only:
            return
        note(f"{name} ...")
        result = part(min(seconds, left)) if left > 5 else {"status": "out of time", "seconds": 0, "rows": []}
        document["sections"][name] = result
        note(f"{name}: {result['status']}, {result['seconds']} s {result.get('error', '')}".rstrip())
        write_json(out / "gpu_check.json", document)
        (out / "gpu_check.md").write_text(markdown(document))

    run(TESTS, TEST_SECONDS, lambda seconds: run_tests(bench, out, seconds))
    if bench.is_gpu and find_spec("fla") and find_spec("triton"):
        limit_autotuning(CONFIGURATIONS)
        run(WARM_UP, WARM_UP_SECONDS, lambda seconds: warm_up(bench, seconds))
    for name, (seconds, section) in SECTIONS.items():
        run(name, seconds, lambda seconds: run_section(section, bench, seconds))  # noqa: B023
    return document


def main(arguments: list[str] | None = None) -> int:
    """0 where all that was run is right, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, to test the check itself")
    parser.add_argument("--device", default=None, help="by default the GPU, if there is one")
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu_check")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which nothing new begins")
    parser.add_argument(
        "--only", default="", help=f"parts, separated by commas: {TESTS}, {WARM_UP}, {', '.join(SECTIONS)}"
    )
    given = parser.parse_args(arguments)
    only = [name for name in given.only.split(",") if name]
    for name in only:
        if name not in (TESTS, WARM_UP, *SECTIONS):
            parser.error(f"--only: {name!r} is not known; allowed: {', '.join((TESTS, WARM_UP, *SECTIONS))}")
    device = parse_device(given.device)
    if device.type == "cpu" and not given.small:
        parser.error("no GPU: only `--small` runs on a CPU")
    document = check(
        Bench(device, given.small),
        given.out,
        given.minutes,
        only,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(markdown(document))
    return 0 if all(part["status"] == "ok" for part in document["sections"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
