"""Text and tables for LaTeX: every character escaped, so that any name compiles under pdfLaTeX, XeLaTeX or LuaLaTeX.

What is written is pure ASCII. Accented Latin letters become accent commands and common signs their commands; a
character that LaTeX's own fonts lack is written as its code, `[U+4E2D]`, rather than lost.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    # After the end of a row these would be its optional argument and its star.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
}
LETTERS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
NAMES = """alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi
psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
SIGNS = {
    "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "…": r"\ldots{}", "\N{NO-BREAK SPACE}": "~",
    "±": r"\ensuremath{\pm}", "×": r"\ensuremath{\times}", "·": r"\ensuremath{\cdot}", "−": r"\ensuremath{-}",
    "≤": r"\ensuremath{\leq}", "≥": r"\ensuremath{\geq}", "≈": r"\ensuremath{\approx}",
    "→": r"\ensuremath{\rightarrow}",
    "∞": r"\ensuremath{\infty}", "°": r"\ensuremath{^\circ}", "ß": r"{\ss}", "æ": r"{\ae}", "Æ": r"{\AE}", "ø": r"{\o}",
    "Ø": r"{\O}", "ł": r"{\l}", "Ł": r"{\L}", "œ": r"{\oe}", "Œ": r"{\OE}",
    **{character: rf"\ensuremath{{\{name}}}" for character, name in zip(LETTERS, NAMES.split(), strict=True)},
    "\N{MICRO SIGN}": r"\ensuremath{\mu}",
}  # fmt: skip
ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": "`",
    "\N{COMBINING ACUTE ACCENT}": "'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING DIAERESIS}": '"',
    "\N{COMBINING MACRON}": "=",
    "\N{COMBINING DOT ABOVE}": ".",
    "\N{COMBINING CARON}": "v ",
    "\N{COMBINING BREVE}": "u ",
    "\N{COMBINING RING ABOVE}": "r ",
    "\N{COMBINING DOUBLE ACUTE ACCENT}": "H ",
    "\N{COMBINING CEDILLA}": "c ",
}
LONGTABLE_ROWS, LONGTABLE_WRAPPED_ROWS = 35, 12
"""Rows above which a table runs over pages, without and with cells that wrap."""
LONG_WORD = 20
UNBROKEN = 14  # characters of a name after which a line may end where it offers no other place


def escape(text: str) -> str:
    """One line of `text` as LaTeX that shows it; line breaks and tabs become spaces."""
    shown = "".join(map(_character, re.sub(r"\s", _space, text)))
    return re.sub(r"-(?=-)", "-{}", shown) if "--" in text else shown  # no dash out of two hyphens


def breakable(text: str) -> str:
    """As `escape`, for names: a line may end after - _ . / = + : and inside what is long without them."""
    pieces = re.findall(rf"[^-_./=+: ]{{1,{UNBROKEN}}}[-_./=+: ]?|[-_./=+: ]", text, re.DOTALL)
    return r"\allowbreak{}".join(map(escape, pieces))


def prose(text: str) -> str:
    """As `escape`, for sentences: long words, such as names of runs, may be broken."""
    return " ".join(breakable(word) if len(word) > LONG_WORD else escape(word) for word in re.split(r"[ \t\n]+", text))


def _space(match: re.Match[str]) -> str:
    return match[0] if match[0] == "\N{NO-BREAK SPACE}" else " "


def _character(character: str) -> str:
    if (found := SPECIAL.get(character) or SIGNS.get(character)) is not None:
        return found
    if " " <= character <= "}":
        return character
    decomposed = unicodedata.normalize("NFD", character)
    base, marks = decomposed[0], decomposed[1:]
    if marks in ACCENTS and base.isascii() and base.isalpha():
        dotless = {"i": r"\i ", "j": r"\j "}.get(base, base)
        return f"{{\\{ACCENTS[marks]}{{{dotless}}}}}"
    return f"{{[}}U+{ord(character):04X}{{]}}"


def ascii_lines(text: str) -> str:
    """A file for \\lstinputlisting: line for line, what is not printable ASCII by its code."""
    lines = text.expandtabs(4).split("\n")
    return "\n".join(
        "".join(c if " " <= c <= "~" else f"<U+{ord(c):04X}>" for c in line.removesuffix("\r")) for line in lines
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: str, caption: str, label: str) -> str:
    """A booktabs table of cells that are LaTeX already; one of many rows runs over pages (longtable)."""
    lines = [" & ".join(row) + r" \\" for row in (head, *rows)]
    if len(rows) <= (LONGTABLE_WRAPPED_ROWS if "p{" in columns else LONGTABLE_ROWS):
        body = [r"\begin{table}[htbp]", r"\centering\small", rf"\caption{{{caption}}}\label{{{label}}}"]
        body += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
        return "\n".join([*body, r"\end{tabular}", r"\end{table}", ""])
    body = [r"\begingroup\small", rf"\begin{{longtable}}{{{columns}}}", rf"\caption{{{caption}}}\label{{{label}}}\\"]
    body += [r"\toprule", lines[0], r"\midrule\endhead", r"\bottomrule\endfoot", *lines[1:]]
    return "\n".join([*body, r"\end{longtable}", r"\endgroup", ""])
