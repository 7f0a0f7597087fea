"""A comparison on the terminal: audit, table and statements by rich, at any width without cutting a number.

Where the columns do not fit side by side, they are laid out in several blocks, each headed by the names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_arch.analysis.budgets import pair_lines, rate_lines
from hf_arch.analysis.columns import Column, filled_columns
from hf_arch.report.names import LEAST_WIDTH, explained, short_names

if TYPE_CHECKING:
    from hf_arch.analysis.comparison import Comparison
    from hf_arch.experiments.planning.plan import Skipped

STYLES = {"violation": "bold red", "note": "yellow", "ok": "green"}
MAX_PAIRS = 15
GAP = 3  # a border or space and the padding on both sides of a column
WORDS_WIDTH = 24  # what a column of words, which may wrap, needs at least


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the audit, the table in as many blocks as the width asks for, and the statements."""
    console = console or Console(highlight=False)
    _print_audit(comparison, console)
    names = _names(comparison, console.width)
    for block in column_blocks(comparison, console.width):
        console.print(_table(comparison, block, names))
    for line in explained(names):
        console.print(Text(line))
    console.print(Text(comparison.headline, style="bold"))
    _print_pairs(comparison, console)
    lines = [
        *filter(None, (comparison.families_words, comparison.seeds_words)),
        *item_lines(comparison),
        *ladder_lines(comparison),
        *budget_lines(comparison),
        *(f"Scaling of {law.architecture}: {law.words}" for law in comparison.scaling),
    ]
    for line in lines:
        console.print(Text(line))
    _print_verdicts(comparison, console)


def _print_verdicts(comparison: Comparison, console: Console) -> None:
    """Each claim with its outcome and what its controls say, and the command that adds controls."""
    for verdict in comparison.verdicts:
        mark = f" ({verdict.mark})" if verdict.mark else ""
        console.print(Text.assemble((f"Hypothesis{mark}: ", "bold"), verdict.claim))
        if verdict.registration.sentence:
            console.print(Text(f"  {verdict.registration.sentence}"))
        console.print(Text.assemble((f"  {verdict.outcome}: ", "bold"), verdict.evidence))
        for control in comparison.controls:
            if control.claim == verdict.claim:
                console.print(Text.assemble(("  with controls: ", "bold"), control.sentence))
    if comparison.controls_command is not None:
        what = f"To remove what confounds the claims ({', '.join(comparison.controls_remove)}): "
        console.print(Text.assemble((what, "bold"), comparison.controls_command))


def item_lines(comparison: Comparison) -> list[str]:
    """What was tested item by item, a line for each pair, task and score; none where no items were kept."""
    tests = comparison.item_tests
    if not tests:
        return []
    shown = sorted(tests, key=lambda test: (test.verdict == "undecided", test.p_adjusted or 0.0))[:MAX_PAIRS]
    left = len(tests) - len(shown)
    return [
        "Item by item (over seeds and items, McNemar with one seed; Holm within a score):",
        *(f"  {test.words}" for test in shown),
        *([f"  ... {left} more in --json"] if left else []),
    ]


def ladder_lines(comparison: Comparison) -> list[str]:
    """The laws of a ladder, their test, and what they say of one run against another."""
    return [] if comparison.ladder is None else ["Ladder:", *(f"  {line}" for line in comparison.ladder.lines)]


def budget_lines(comparison: Comparison) -> list[str]:
    """Pairs at equal tokens, training FLOPs and seconds, and their exchange rates."""
    shown = comparison.budgets[:MAX_PAIRS]
    if not shown:
        return []
    left = len(comparison.budgets) - len(shown)
    return [
        "Equal tokens, training FLOPs and seconds:",
        *(f"  {line}" for line in pair_lines(shown)),
        *(f"  {line}" for line in rate_lines(shown)),
        *([f"  ... {left} more pairs in --json"] if left else []),
    ]


def print_skipped(skipped: Sequence[Skipped]) -> None:
    """The points of the matrix that have no row in the table."""
    for entry in skipped:
        print(f"skipped: {entry.name}: {entry.reason}")


def column_blocks(comparison: Comparison, width: int) -> list[list[Column]]:
    """The columns that hold a value, packed in order into blocks no wider than `width` characters."""
    name_width = max(map(len, _names(comparison, width).values()))
    blocks: list[list[Column]] = [[]]
    used = name_width + GAP + 1
    for column in filled_columns(comparison):
        needed = _needed(comparison, column) + GAP
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = name_width + GAP + 1
        blocks[-1].append(column)
        used += needed
    return blocks


def _needed(comparison: Comparison, column: Column) -> int:
    """Characters of the longest cell, or of the title."""
    return max(len(text) for text in (column.title, *(column.cell(comparison, g) for g in comparison.groups)))


def _table(comparison: Comparison, columns: list[Column], names: dict[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True, min_width=max(map(len, names.values())))
    for column in columns:
        # Words may wrap where even a block of one column is too wide; a number is never wrapped or cut.
        words = column.key == "versus_baseline"
        table.add_column(column.title, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for group in comparison.groups:
        cells = [Text(column.cell(comparison, group)) for column in columns]
        table.add_row(Text(names[group.name]), *cells, style="" if group.counted else "dim")
    return table


def _names(comparison: Comparison, width: int) -> dict[str, str]:
    """What stands in the column of names: whole names up to half the width; the other columns go to further blocks."""
    widest = max(
        min(_needed(comparison, column), WORDS_WIDTH)
        if column.key == "versus_baseline"
        else _needed(comparison, column)
        for column in filled_columns(comparison)
    )
    room = min(max(width // 2, 2 * LEAST_WIDTH), width - widest - GAP - 1)
    return short_names([group.name for group in comparison.groups], room)


def _print_audit(comparison: Comparison, console: Console) -> None:
    violations = sum(finding.severity == "violation" for finding in comparison.findings)
    verdict = f"{violations} violation{'s' if violations != 1 else ''}" if violations else "no violation"
    console.print(Text(f"Audit: {verdict}", style="bold"))
    lines = Table.grid(padding=(0, 1))
    for finding in comparison.findings:
        lines.add_row(" ", Text(finding.severity, style=STYLES[finding.severity]), Text(finding.sentence))
    console.print(lines)


def _print_pairs(comparison: Comparison, console: Console) -> None:
    ranked = [group.name for group in comparison.groups if group.counted]
    pairs = [
        (first, second)
        for i, first in enumerate(ranked)
        for second in ranked[i + 1 :]
        if comparison.pair(first, second) is not None
    ]
    if len(pairs) > MAX_PAIRS:
        console.print(f"{len(pairs)} pairs compared; --json lists them all, the table those with the baseline.")
        return
    for first, second in pairs:
        pair = comparison.pair(first, second)
        if pair is not None:
            p = "" if pair.p_adjusted is None else f" (n={len(pair.seeds)}, Holm p={pair.p_adjusted:.2g})"
            console.print(Text(f"  {first} against {second}: {comparison.words(pair)}{p}"))
