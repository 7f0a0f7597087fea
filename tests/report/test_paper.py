"""`hf-arch report --format latex|csv|pdf`: complete, escaped, equal when read back, and whole or not there."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.report import report_command
from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import ARCHITECTURES
from hf_arch.report import paper
from hf_arch.report.bibliography import SOURCES, bibliography, parse_source, references
from hf_arch.report.csv_files import csv_text
from hf_arch.report.latex import ascii_lines, breakable, escape
from hf_arch.report.methods import methods
from hf_arch.report.page import render
from hf_arch.report.printing import BROWSERS
from tests.experiments.synthetic import write_run, write_suite

PDFLATEX = shutil.which("pdflatex")
BRIEF = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
HOSTILE = [
    r"a_b%c&d#e$f~g^h\i{j}k",
    "*starred* [0.1] & more",
    "naïve-Ångström-Łódź-αβ-漢字-🙂",
    "<i>\"q\"</i> --- `x` 'y' a--b",
    "x" * 90,
]  # fmt: skip


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four architectures, and a run that keeps a plugin."""
    root = write_suite(tmp_path_factory.mktemp("paper") / "suite", seeds=2)
    plugin = 'TEXT = "50 % of \\\\end{verbatim} für 漢字"\n\f\n' + "x = 1  # " + "long " * 60 + "\n"
    facts = {"plugins/my_mixer.py": {"sha256": {"my_mixer.py": "0"}, "original": "my_mixer.py"}}
    folder = write_run(root, "gla", 1, config={"run": {"plugins": facts}})
    (folder / "plugins").mkdir()
    (folder / "plugins" / "my_mixer.py").write_text(plugin)
    return root


@pytest.fixture(scope="module")
def folder(suite: Path) -> Path:
    assert report_command(str(suite), None, "latex") == 0
    return suite / "paper"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    for name in HOSTILE:
        for seed in (1, 2):
            write_run(root, name, seed, hypothesis=f"{name} better than 100 % of $x_1$")
    return root


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.rest
def test_every_number_reads_back_equal(suite: Path, folder: Path) -> None:
    comparison = compare_runs(suite)
    runs = read(folder / "csv" / "runs.csv")
    assert len(runs) == len(comparison.runs) == 9
    for row, run in zip(runs, comparison.runs, strict=True):
        assert row["name"] == run.name and int(row["seed"]) == run.seed
        for key in ("final_val_loss", "params_total", "wall_seconds", "bits_per_byte"):
            assert (float(row[key]) if row[key] else None) == run.numbers.get(key)
    groups = {row["name"]: row for row in read(folder / "csv" / "groups.csv")}
    for group in comparison.groups:
        assert float(groups[group.name]["final_val_loss"]) == group.mean("final_val_loss")
        assert json.loads(groups[group.name]["components"]) == dict(group.reference.components)
    for row, pair in zip(read(folder / "csv" / "pairs.csv"), comparison.pairs, strict=True):
        assert (row["first"], row["second"], float(row["p_value"])) == (pair.first, pair.second, pair.p_value)


@pytest.mark.rest
def test_every_curve_reads_back_equal(suite: Path, folder: Path) -> None:
    rows = read(folder / "csv" / "curves.csv")
    logged = [row for run in compare_runs(suite).runs for row in run.metrics]
    assert len(rows) == len(logged) > 200
    for row, entry in zip(rows, logged, strict=True):
        assert {key: float(row[key]) for key in entry} == entry
    means = read(folder / "csv" / "mean_curves.csv")
    assert {row["name"] for row in means} == {"gpt2", "llama", "gla", "mamba"}


@BRIEF
@example([{"a": None, "b": "\r"}, {"a": 0.1, "b": '\n,"'}])
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "c,\n"]),
            st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.text(), st.none()),
        ),
        max_size=6,
    )
)
def test_any_rows_read_back_equal(rows: list[dict[str, object]]) -> None:
    found = list(csv.DictReader(io.StringIO(csv_text(rows), newline="")))
    if len({key for row in rows for key in row}) > 1:  # a row of one empty cell is an empty line to any reader
        for back, row in zip(found, rows, strict=True):
            for key, value in row.items():
                assert back[key] == "" if value is None else type(value)(back[key]) == value


def test_the_csv_files_alone(suite: Path, tmp_path: Path) -> None:
    assert report_command(str(suite), str(tmp_path / "deep" / "tables"), "csv") == 0
    found = {path.stem for path in (tmp_path / "deep" / "tables").glob("*.csv")}
    assert found == {"groups", "runs", "pairs", "claims", "audit", "curves", "mean_curves"}


def test_the_paper_is_whole(suite: Path, folder: Path) -> None:
    text = (folder / "paper.tex").read_text()
    assert text.isascii()
    for kind in ("tables/{}.tex", "figures/{}.pdf"):
        pattern = r"\\input\{tables/([^}]+)\}" if "tables" in kind else r"figures/([^}]+)\.pdf"
        for name in re.findall(pattern, text):
            assert (folder / kind.format(name)).stat().st_size > 200
    drawn = set(re.findall(r"figures/([^}]+)\.pdf", text))
    assert drawn == {path.stem for path in (folder / "figures").glob("*.svg")} >= {"means", "curve-tokens"}
    assert all("<!--" not in path.read_text() for path in (folder / "figures").glob("*.svg"))
    table = (folder / "tables" / "results-1.tex").read_text()
    assert r"\toprule" in table and r"\midrule" in table and r"\bottomrule" in table
    comparison = compare_runs(suite)
    tables = "".join(path.read_text() for path in (folder / "tables").glob("results-*.tex"))
    for group in comparison.groups:
        assert f"{group.mean('final_val_loss'):.3f}" in tables
    assert "50 % of" in (folder / "sources" / "plugins" / "my-mixer.py").read_text()
    assert "my\\_" in text and (folder / "sources" / "recipe-gla.yaml").is_file()
    cited = {key for keys in re.findall(r"\\cite\{([^}]+)\}", text) for key in keys.split(",")}
    assert cited == set(re.findall(r"@misc\{([^,]+),", (folder / "references.bib").read_text()))


def test_methods_say_what_the_records_say(tmp_path: Path, suite: Path) -> None:
    text = " ".join(methods(compare_runs(suite)))
    for told in (
        "shakespeare", "rows of 256 tokens", "819,200 tokens in 200 optimiser steps", "not matched", "AdamW",
        "chosen among 0.0003, 0.001 and 0.003, on rows and seeds that the comparison does not use",
        "2 seeds (1 and 2)", "1 run did not complete", "6 pairs of the table", "cpu (2 threads) in fp32",
        "torch 2.13.0",
    ):  # fmt: skip
        assert told in text, told
    match = {"by": "flops", "tolerance": 0.01, "reference": "llama"}
    for name in ("llama", "gla"):
        write_run(tmp_path, name, 1, config={"run": {"match": match}})
    alone = " ".join(methods(compare_runs(tmp_path)))
    assert "made equal in training FLOPs per token to llama, within 1.0%" in alone
    assert "No difference is tested" in alone and "Holm" not in alone
    write_run(tmp_path / "failed", results={"status": "failed", "final_val_loss": None})
    assert methods(compare_runs(tmp_path / "failed")) == []


def test_sources_are_those_that_the_registry_names() -> None:
    found = references(ARCHITECTURES)
    assert {"gla", "mixed", "gpt2", "gdn2", "lfm2"} <= set(found)
    assert set(SOURCES) == {
        reference.arxiv
        for sources in found.values()
        for reference in sources
        if reference.arxiv and not reference.title.startswith("arXiv:")
    }
    for sources in found.values():
        for reference in sources:
            if reference.arxiv:
                assert 0 <= int(reference.year) - 2000 - int(reference.arxiv[:2]) <= 0, reference
    gla = found["gla"][0].bibtex()
    assert "author = {Yang, Songlin and others}" in gla and "eprint = {2312.06635}" in gla and "year = {2023}" in gla
    assert [source.arxiv for source in found["mixed"]] == ["2403.19887", "2406.07522"]
    assert found["gdn2"][0].title == "arXiv:2605.22791" and not found["gdn2"][0].authors
    assert parse_source("of my own, not published") == [] and references(["unknown"]) == {}
    assert bibliography(found).count("@misc{") == len({r.key for sources in found.values() for r in sources})


@BRIEF
@given(st.text(max_size=40))
def test_any_text_becomes_plain_ascii_with_balanced_braces(text: str) -> None:
    for shown in (escape(text), breakable(text)):
        assert shown.isascii() and "\n" not in shown
        bare = re.sub(r"\\[{}]", "", shown)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"(?<!\\)[%&#$_]", re.sub(r"\\ensuremath\{\^\\circ\}", "", shown))
    assert all(" " <= character <= "~" or character == "\n" for character in ascii_lines(text))


@pytest.mark.rest
def test_an_error_leaves_nothing_behind(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_folder: Path, _name: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(paper, "write_csv_files", fail)
    with pytest.raises(OSError, match="disk full"):
        report_command(str(suite), str(tmp_path / "paper"), "latex")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_where_nothing_is_lost(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "csv"
    report_command(str(hostile), str(out), "csv")
    report_command(str(hostile), str(out), "csv")
    (out / "paper.aux").write_text("by LaTeX")
    report_command(str(hostile), str(out), "csv")
    (out / "runs.csv").write_text("edited")
    with pytest.raises(ConfigError, match=r"runs\.csv was changed since it was written"):
        report_command(str(hostile), str(out), "csv")
    assert (out / "runs.csv").read_text() == "edited"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="contains other files"):
        report_command(str(hostile), str(mine), "latex")
    with pytest.raises(ConfigError, match="is a file"):
        report_command(str(hostile), str(mine / "notes.txt"), "latex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["csv", "mine"]


def test_mistakes_are_one_line(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--format: 'latx'.*nearest: 'latex'"):
        report_command(str(suite), None, "latx")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no browser to print the page with .* install Chromium"):
        report_command(str(suite), str(tmp_path / "a.pdf"), "pdf")
    for name in ("chromium",):
        (tmp_path / name).write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError, match=r"did not print the page \(exit code 3\): broken"):
        report_command(str(suite), str(tmp_path / "a.pdf"), "pdf")
    assert not (tmp_path / "a.pdf").exists()


@pytest.mark.rest
@pytest.mark.chromium
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs a browser to print")
def test_the_page_is_printed(suite: Path, tmp_path: Path) -> None:
    assert report_command(str(suite), str(tmp_path / "page.pdf"), "pdf") == 0
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(PDFLATEX is None, reason="needs pdflatex")
@pytest.mark.parametrize("kind", ["usual", "hostile"])
def test_the_paper_compiles(folder: Path, hostile: Path, tmp_path: Path, kind: str) -> None:
    if kind == "hostile":
        report_command(str(hostile), None, "latex")
        folder = hostile / "paper"
    copy = shutil.copytree(folder, tmp_path / "paper")
    cited = "\\cite{" in (copy / "paper.tex").read_text()  # architectures of no registry have no source
    for command in ([PDFLATEX], *([["bibtex"]] if cited else []), [PDFLATEX], [PDFLATEX]):
        options = ["paper"] if command == ["bibtex"] else ["-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
        done = subprocess.run([*map(str, command), *options], cwd=copy, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    log = (copy / "paper.log").read_text(errors="replace")
    assert "undefined references" not in log and "Missing character" not in log
    assert (copy / "paper.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_has_the_methods(suite: Path) -> None:
    page = render(compare_runs(suite), "suite")
    assert "Methods" in page and "6 pairs of the table" in page
