"""The tasks of our own, and names that stand for several tasks. Needs no lm_eval."""

from __future__ import annotations

from pathlib import Path

OUR_TASKS = Path(__file__).parent / "tasks"
SUITES = {
    "comprehensive": (
        *("lambada_openai", "arithmetic", "sentence_completion", "word_association", "simple_qa"),
        *("piqa", "social_iqa"),
    )
}
"""Names that stand for several tasks. (`hellaswag`, lm_eval's own task, is a suite of one.)"""
