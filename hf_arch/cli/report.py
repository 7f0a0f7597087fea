"""What `hf-arch report` does."""

from __future__ import annotations

from rich.console import Console

from hf_arch.report.page import FIGURES_DIR, write_report


def report_command(results_dir: str, output: str | None) -> int:
    """`hf-arch report`: writes the page, says where, and returns the exit code."""
    path = write_report(results_dir, output)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"report: {path}", markup=False)
    console.print(f"figures: {path.parent / FIGURES_DIR}", markup=False)
    return 0
