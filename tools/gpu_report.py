"""What a check of a GPU found, in the Markdown of docs/performance.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]


def summarise_tests(rows: list[Row]) -> Row:
    """Counts by test function, the worst measured errors, and every failure with its message."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        function = row["test"].partition("[")[0]
        counts[function][row["outcome"]] += 1
        kind = function + "".join(
            f", {word}" for word in ("fla", "torch", "fp32", "bf16") if word in _words(row["test"])
        )
        for name, error in row["errors"].items():
            errors[kind][name] = max(error, errors[kind].get(name, 0.0))
    failures = [
        {key: row[key] for key in ("test", "errors", "message")}
        for row in rows
        if row["outcome"] in ("failed", "error")
    ]
    return {
        "counts": {name: dict(count) for name, count in counts.items()},
        "worst_errors": {kind: dict(found) for kind, found in errors.items()},
        "failures": failures,
        "slowest": sorted(((row["seconds"], row["test"]) for row in rows), reverse=True)[:10],
    }


def _words(test: str) -> list[str]:
    function, _, parameters = test.partition("[")
    return [*parameters.rstrip("]").split("-"), *(word for word in ("fp32", "bf16") if f"test_{word}_" in function)]


def markdown(document: dict[str, Any]) -> str:
    """One heading and table a section that has rows."""
    environment = document["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    head = f"`{document['command']}` on {environment['device']}, {document['at']}: "
    head += f"Python {environment['python']}, {versions}."
    parts = [head, _states(document["sections"])]
    for name, (title, table) in TABLES.items():
        section = document["sections"].get(name)
        if section and section.get("rows"):
            parts.append(f"{title}\n\n{table(section['rows'])}")
    if failures := document["sections"].get("tests", {}).get("failures"):
        parts.append("Failed:\n\n" + "\n".join(f"- `{row['test']}`: {_last_line(row['message'])}" for row in failures))
    return "\n\n".join(parts) + "\n"


def _last_line(message: str) -> str:
    lines = [line for line in message.splitlines() if line.startswith("E ")] or message.splitlines() or [""]
    return lines[0].removeprefix("E").strip()[:300]


def _states(sections: dict[str, Row]) -> str:
    rows = []
    for name, section in sections.items():
        told = section["status"]
        if name == "tests":
            totals: dict[str, int] = defaultdict(int)
            for count in section["counts"].values():
                for outcome, number in count.items():
                    totals[outcome] += number
            told += ": " + ", ".join(f"{number} {outcome}" for outcome, number in sorted(totals.items()))
        rows.append((name, told, f"{section['seconds']:.0f}"))
    return _table(("part", "outcome", "seconds"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shape(row: Row) -> str:
    return "×".join(map(str, row["shape"]))


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _recurrences(rows: list[Row]) -> str:
    shapes = sorted({_shape(row) for row in rows}, key=lambda shape: -int(shape.split("×")[2]))
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in rows:
        told = "failed" if "error" in row else f"{row['milliseconds']:,.2f}"
        cells[row["op"], row["backend"]][_shape(row)] = told
    ops = list(dict.fromkeys(row["op"] for row in rows))
    head = ["recurrence", *(f"{shape}, {backend}" for shape in shapes for backend in ("FLA", "torch"))]
    return _table(
        head,
        ([op, *(cells[op, backend].get(shape, "") for shape in shapes for backend in ("fla", "torch"))] for op in ops),
    )


def _by(*columns: tuple[str, Callable[[Row], str]]) -> Callable[[list[Row]], str]:
    def table(rows: list[Row]) -> str:
        head = [name for name, _ in columns]
        good = ([cell(row) for _, cell in columns] for row in rows if "error" not in row)
        text = _table(head, good)
        bad = [f"{columns[0][1](row)}: {row['error']}" for row in rows if "error" in row]
        return text + "".join(f"\n\nFailed: {line}" for line in bad)

    return table


def _gigabytes(row: Row) -> str:
    return "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f}"


def _machine(rows: list[Row]) -> str:
    return _table(
        ("ceiling", "measured"),
        (
            (
                row["what"],
                f"{row['tflops']:.0f} TFLOP/s" if "tflops" in row else f"{row['gigabytes_per_second']:,} GB/s",
            )
            for row in rows
        ),
    )


TABLES: dict[str, tuple[str, Callable[[list[Row]], str]]] = {
    "machine": ("What the card gives:", _machine),
    "recurrences": ("Each recurrence, forward and backward in ms at B×T×H heads of width 128, bf16:", _recurrences),
    "mixers": (
        "One block of each mixer, 2048 wide, forward and backward, bf16 autocast, 4 rows of 2048 tokens:",
        _by(
            ("mixer", lambda row: row["mixer"]),
            ("ms", lambda row: _number(row["milliseconds"])),
            ("tokens/s", lambda row: _number(row["tokens_per_second"], 0)),
            ("peak memory, GiB", _gigabytes),
        ),
    ),
    "training": (
        "Training steps, bf16 autocast, fused AdamW:",
        _by(
            ("model", lambda row: row["model"] + (", compiled" if row["compile"] else "")),
            ("rows × tokens", _shape),
            ("tokens/s", lambda row: _number(row["tokens_per_second"], 0)),
            ("MFU", lambda row: "" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"),
            ("peak memory, GiB", _gigabytes),
            ("first step, s", lambda row: _number(row["first_step_seconds"])),
        ),
    ),
    "crossover": (
        "Softmax attention against the gated delta rule, forward and backward in ms, bf16, 16 heads of width 128:",
        _by(
            ("B×T×H", _shape),
            ("attention (sdpa)", lambda row: _number(row["attention_milliseconds"], 2)),
            ("gated delta rule", lambda row: _number(row["gated_delta_milliseconds"], 2)),
        ),
    ),
    "losses": (
        "Losses in fp32 and under bf16 autocast, the same data and order, mean of the last 20 steps:",
        _by(
            ("model", lambda row: row["model"]),
            ("steps", lambda row: str(row["steps"])),
            ("first loss", lambda row: f"{row['first_loss']:.3f}"),
            ("fp32", lambda row: f"{row['fp32']:.4f}"),
            ("bf16", lambda row: f"{row['bf16']:.4f}"),
            ("largest difference of a step", lambda row: f"{row['largest_difference_of_a_step']:.4f}"),
        ),
    ),
    "decoding": (
        "Prefill and decoding in tokens/s, bf16, batch size 1:",
        _by(
            ("model", lambda row: row["model"]),
            ("context", lambda row: str(row["context"])),
            ("prefill", lambda row: _number(row["prefill_tokens_per_second"], 0)),
            ("decoding", lambda row: _number(row["decode_tokens_per_second"])),
        ),
    ),
}
"""Section -> the line above its table, and the table."""
