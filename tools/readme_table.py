"""The README's benchmark table, filled from what runs have measured and from nothing else.

`python -m tools.readme_table FOLDER [--readme README.md]` takes each finished run in a folder: parameters, speeds and
memory from its results.json, HellaSwag from its evaluation.json (`hf-arch eval FOLDER --tasks hellaswag`). The table
replaces the text between two comments of the README. It is refused where a number is missing, or where runs were not
measured under the same conditions: on one device, and on the same rows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_atomic
from hf_arch.core.formats import byte_size
from hf_arch.numerics import numerics_version
from hf_arch.runs.record import RunRecord
from hf_arch.runs.suite import find_runs

START, END = "<!-- benchmarks: start -->", "<!-- benchmarks: end -->"
HEAD = ("", "Parameters", "HellaSwag acc_norm", "Train tok/s", "Inference tok/s", "Memory")
_NUMBERS = ("params_total", "train_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes")


def fill_readme(results_dir: str, readme: str) -> str:
    """Writes the table of the runs in `results_dir` into `readme` between its two comments; returns the table.

    Raises:
        ConfigError: no finished runs, a number that was not measured, runs measured differently, a README without the
            comments.
    """
    path = Path(readme)
    if not path.is_file():
        raise ConfigError(f"--readme: {readme}: no such file")
    text = path.read_text(encoding="utf-8")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ConfigError(f"--readme: {readme}: has to hold the lines {START!r} and {END!r} once each, in that order")
    table = benchmark_table(results_dir)
    before, after = text.split(START)[0], text.split(END)[1]
    write_atomic(path, f"{before}{START}\n\n{table}\n{END}{after}")
    return table


def benchmark_table(results_dir: str) -> str:
    """The table as Markdown, with a line below it that says how it was measured. Raises as `fill_readme`."""
    if not Path(results_dir).is_dir():
        raise ConfigError(f"results folder: {results_dir}: no such folder")
    runs = [run for run in find_runs(results_dir) if run.completed]
    if not runs:
        raise ConfigError(f"results folder: {results_dir}: contains no finished run")
    for run in runs:
        _require_measured(run)
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    lines = [_line(HEAD), _line(["---", *["--:"] * (len(HEAD) - 1)])]
    lines += [_line(_cells(name, group)) for name, group in groups.items()]
    return "\n".join([*lines, "", _conditions(runs), ""])


def _require_measured(run: RunRecord) -> None:
    missing = [key for key in _NUMBERS if key not in run.numbers]
    if missing:
        raise ConfigError(f"{run.path}: {missing[0]} was not measured; the table takes measured numbers only")
    if "acc_norm" not in run.benchmarks.get("hellaswag", {}):
        raise ConfigError(f"{run.path}: HellaSwag was not measured; first: hf-arch eval {run.path} --tasks hellaswag")


def _cells(name: str, runs: Sequence[RunRecord]) -> list[str]:
    def mean(key: str) -> float:
        return statistics.fmean(run.numbers[key] for run in runs)

    scores = [run.benchmarks["hellaswag"] for run in runs]
    score = statistics.fmean(values["acc_norm"] for values in scores)
    error = statistics.fmean(values.get("acc_norm_stderr", 0.0) ** 2 for values in scores) ** 0.5
    return [
        name,
        f"{mean('params_total'):,.0f}",
        f"{100 * score:.1f} % ± {100 * error:.1f}",
        f"{mean('train_tokens_per_second'):,.0f}",
        f"{mean('decode_tokens_per_second'):,.0f}",
        byte_size(round(mean("peak_memory_bytes"))),
    ]


def _conditions(runs: Sequence[RunRecord]) -> str:
    """One sentence of what all runs have in common. Raises `ConfigError` naming what they have not."""

    def common(what: str, of: Callable[[RunRecord], Any]) -> Any:
        found = _distinct(of(run) for run in runs)
        if len(found) > 1:
            raise ConfigError(f"runs differ in {what} ({', '.join(map(str, found))}); a table needs one")
        return found[0]

    device = common("device", lambda run: run.provenance.get("device"))
    threads = common("threads", lambda run: run.provenance.get("threads"))
    precision = common("precision", lambda run: run.precision)
    length = common("sequence length", lambda run: run.sequence_length)
    samples = common("rows of HellaSwag", lambda run: run.benchmarks["hellaswag"].get("samples"))
    origin = common("origin of HellaSwag's rows", lambda run: run.benchmarks["hellaswag"].get("rows"))
    seeds = len({run.seed for run in runs})
    tokens = " to ".join(f"{value:,.0f}" for value in sorted({min(_tokens(runs)), max(_tokens(runs))}))
    numerics = common("numerics", lambda run: numerics_version(run.provenance))
    version = "" if numerics is None else f", numerics {numerics}"
    machine = f"{device} ({_count(threads, 'thread')}, {precision}, rows of {length} tokens{version})"
    return (
        f"Measured on {machine}, {_count(seeds, 'seed')} each, after {tokens} tokens of training: models of a size for "
        f"a CPU, for comparison with each other. HellaSwag: the first {samples:,} rows ({origin}); chance is 25 %. "
        "Inference is decoding at batch size 1."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _tokens(runs: Iterable[RunRecord]) -> list[float]:
    return [run.numbers.get("tokens_seen", 0.0) for run in runs]


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fills the table and prints it; exit code 2 with one line where it is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", metavar="FOLDER", help="the folder of finished runs")
    parser.add_argument("--readme", metavar="FILE", default="README.md", help="the file that is filled")
    options = parser.parse_args(arguments)
    try:
        print(fill_readme(options.results, options.readme))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
