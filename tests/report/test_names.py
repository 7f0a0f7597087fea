"""Names where room is short: whole where they fit, distinct always, and the table lists what it shortened."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_arch.analysis.compare import compare_runs
from hf_arch.report.names import LEAST_WIDTH, explained, short_names
from tests.experiments.synthetic import write_run
from tests.report.text import comparison_text

LONG = [f"attention_gla_no_gating-hidden_size-{width}-num_hidden_layers-{i}" for i, width in enumerate((64, 128, 256))]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text("ab-", min_size=1, max_size=40), min_size=1, max_size=30, unique=True), st.integers(1, 50))
def test_short_names_are_distinct_and_fit(names: list[str], width: int) -> None:
    short = short_names(names, width)
    assert list(short) == names and len(set(short.values())) == len(names)
    for name, text in short.items():
        assert text == name if len(name) <= width else len(text) <= max(width, LEAST_WIDTH)
        if "…" in text:
            assert name.endswith(text.split("…")[1])


def test_the_end_that_differs_is_kept() -> None:
    short = short_names(LONG, 30)
    assert [text.split("…")[1] for text in short.values()] == [
        f"{width}-num_hidden_layers-{i}"[-len(text.split("…")[1]) :]
        for text, (i, width) in zip(short.values(), enumerate((64, 128, 256)), strict=True)
    ]
    assert explained(short_names(["gla"], 30)) == [] and len(explained(short)) == 3


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize(
    "names", [["momentum_delta_net", "precond_gated_delta_net", "gla"], LONG], ids=["usual", "long"]
)
def test_a_row_of_the_table_begins_with_a_whole_or_a_listed_name(tmp_path: Path, names: list[str], width: int) -> None:
    for name in names:
        for seed in (1, 2):
            write_run(tmp_path, name, seed, hypothesis="")
    text = comparison_text(compare_runs(tmp_path), width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    joined = "".join(text.split())
    blocks = [i for i, line in enumerate(lines) if line.strip().startswith("name ")]
    assert blocks
    for start in blocks:
        rows = [line.split()[0] for line in lines[start + 2 :] if line[:1].strip() or line[1:2].strip()]
        rows = list(dict.fromkeys(rows))[: len(names)]
        for row in rows:
            assert row in names or f"{row}:" in joined, row
        assert len({row for row in rows if row in names or "…" in row}) == len(names)
    for name in names:
        assert name in joined
