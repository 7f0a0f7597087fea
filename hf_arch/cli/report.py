"""What `hf-arch report` does."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from hf_arch.analysis.compare import compare_runs
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.report.folder import check_replaceable
from hf_arch.report.page import FIGURES_DIR, render, write_report

DEFAULTS = {"html": "report.html", "latex": "paper", "csv": "csv", "pdf": "report.pdf"}
"""{format: name in the results folder}: a page, two folders, and the page printed."""


def report_command(results_dir: str, output: str | None, form: str = "html") -> int:
    """`hf-arch report`: writes the page, the folder of a paper, or the page as PDF, says where, and returns the exit
    code. Raises ConfigError for a user's mistake, before anything is written."""
    if form not in DEFAULTS:
        raise choice_error("--format", form, DEFAULTS)
    path = Path(results_dir) / DEFAULTS[form] if output is None else Path(output)
    console = Console(highlight=False, soft_wrap=True)
    if form == "html":
        path = write_report(results_dir, output)
        console.print(f"report: {path}", markup=False)
        console.print(f"figures: {path.parent / FIGURES_DIR}", markup=False)
        return 0
    console.print(f"report: {_write(form, results_dir, path)}", markup=False)
    return 0


def _write(form: str, results_dir: str, path: Path) -> Path:
    from hf_arch.report.paper import write_csv, write_latex
    from hf_arch.report.printing import browser, print_page

    title = Path(results_dir).resolve().name
    if form == "pdf":
        if path.is_dir():
            raise ConfigError(f"output: {path} is a folder; give the name of a file, e.g. {path / DEFAULTS[form]}")
        browser()
        return print_page(render(compare_runs(results_dir), title), path)
    check_replaceable(path)
    comparison = compare_runs(results_dir)
    return write_latex(comparison, title, path) if form == "latex" else write_csv(comparison, path)
