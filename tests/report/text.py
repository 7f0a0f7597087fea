"""What the terminal shows of a comparison, as text."""

from __future__ import annotations

import io

from rich.console import Console

from hf_arch.analysis.comparison import Comparison
from hf_arch.report.table import print_comparison


def comparison_text(comparison: Comparison, width: int = 120) -> str:
    """The audit, the table and the statements."""
    buffer = io.StringIO()
    print_comparison(comparison, Console(file=buffer, width=width, color_system=None, highlight=False))
    return buffer.getvalue()
