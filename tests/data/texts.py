"""Made-up text for the data tests."""

from __future__ import annotations

WORDS = tuple("the quick brown fox jumps over a lazy dog while seven zebras wade past \u00e9 \u4e2d \U0001f600".split())  # noqa: SIM905


def make_text(seed: int, words: int) -> str:
    """Text with runs of spaces, line breaks, and characters of one to four bytes."""
    state, parts = seed * 7919 + 1, []
    for _ in range(words):
        state = (state * 1103515245 + 12345) % 2**31
        parts.append(WORDS[state // 65536 % len(WORDS)] + (" ", "\n", "  ", "\n\n", ". ")[state // 4096 % 5])
    return "".join(parts)
