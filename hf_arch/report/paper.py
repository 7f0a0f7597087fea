"""`hf-arch report --format latex`: a folder that a paper is written from.

    paper.tex         compiles as it is; every table is a file in tables/ to be included elsewhere
    references.bib    the sources of the architectures
    figures/          each figure as PDF and SVG
    csv/              every table and every curve with all digits
    sources/          the recipe of each model, and the plugins

The text is what the runs recorded. Every name is escaped (`hf_arch.report.latex`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_arch.analysis.budgets import pair_lines, rate_lines
from hf_arch.analysis.columns import Column, filled_columns
from hf_arch.analysis.comparison import Comparison
from hf_arch.analysis.groups import Group
from hf_arch.analysis.stats import Interval
from hf_arch.core.formats import MISSING
from hf_arch.report.bibliography import Reference, bibliography, references
from hf_arch.report.csv_files import write_csv_files
from hf_arch.report.folder import write_folder, write_text
from hf_arch.report.latex import ascii_lines, breakable, escape, prose, table
from hf_arch.report.methods import methods
from hf_arch.report.sources import file_name, plugin_files, recipe_differences, recipe_text

PREAMBLE = r"""\documentclass[11pt]{article}
\usepackage[a4paper,margin=2.2cm]{geometry}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}
\usepackage{array,booktabs,longtable,graphicx,listings}
\lstset{basicstyle=\ttfamily\scriptsize,breaklines=true,columns=fullflexible,keepspaces=true,extendedchars=false}
\setlength{\emergencystretch}{3em}
\setlength{\belowcaptionskip}{6pt}
"""
LINE = 76  # characters of all columns but the names, side by side
NAME_WIDTH = 24
MAX_PAIRS = 200
WORDS = r">{\raggedright\arraybackslash}p{%.1fcm}"


def write_latex(comparison: Comparison, title: str, path: Path) -> Path:
    """The folder at `path`, whole or not at all. Raises ConfigError where it would replace what is not ours."""
    return write_folder(path, lambda folder: _write(comparison, title, folder))


def write_csv(comparison: Comparison, path: Path) -> Path:
    """The CSV files alone in the folder `path`, as `write_latex` writes them."""
    return write_folder(path, lambda folder: write_csv_files(comparison, folder))


def _write(comparison: Comparison, title: str, folder: Path) -> None:
    cited = references(group.reference.architecture for group in comparison.groups)
    tables = _tables(comparison)
    budgets = [*pair_lines(comparison.budgets[:MAX_PAIRS]), *rate_lines(comparison.budgets)[:MAX_PAIRS]]
    for name, text in tables.items():
        write_text(folder / "tables" / f"{name}.tex", text)
    body = [
        PREAMBLE + rf"\title{{{escape(title)}}}" + "\n\\author{}\n\\date{}",
        "\\begin{document}\n\\maketitle\n",
        "\\begin{abstract}\n" + prose(comparison.headline) + "\n\\end{abstract}\n",
        *_claims(comparison),
        "\\section{Methods}\n" + _methods(comparison, cited) + "\n",
        "\\section{Results}\n",
        *(rf"\input{{tables/{name}}}" for name in tables),
        *_list("At equal tokens, training FLOPs and seconds", budgets),
        *_list("Ladder", [] if comparison.ladder is None else comparison.ladder.lines),
        "\\clearpage",
        *_figures(comparison, folder / "figures"),
        *_audit(comparison),
        *([r"\bibliographystyle{plain}", r"\bibliography{references}"] if cited else []),
        "\\appendix",
        *_sources(comparison, folder / "sources"),
        "\\end{document}\n",
    ]
    write_text(folder / "paper.tex", "\n".join(body))
    write_text(folder / "references.bib", bibliography(cited))
    write_csv_files(comparison, folder / "csv")


def _claims(comparison: Comparison) -> list[str]:
    if not comparison.verdicts:
        return []
    items = [
        rf"\item \textbf{{{escape(verdict.outcome)}}}: \emph{{{prose(verdict.claim.rstrip('.'))}}}. "
        + prose(verdict.evidence)
        for verdict in comparison.verdicts
    ]
    items += [rf"\item With controls: {prose(control.sentence)}" for control in comparison.controls]
    return ["\\section{Claims}\n\\begin{itemize}", *items, "\\end{itemize}\n"]


def _list(title: str, lines: Sequence[str]) -> list[str]:
    """A subsection with a line an item; nothing without one."""
    items = [rf"\item {prose(line)}" for line in lines]
    return [rf"\subsection{{{title}}}", "\\begin{itemize}", *items, "\\end{itemize}\n"] if items else []


def _methods(comparison: Comparison, cited: dict[str, list[Reference]]) -> str:
    sources = []
    for group in comparison.groups:
        architecture = group.reference.architecture
        if architecture in cited:
            cite = rf"~\cite{{{','.join(source.key for source in cited[architecture])}}}"
            of_it = "" if group.name == architecture else f" ({prose(architecture)}{cite})"
            sources.append(breakable(group.name) + (of_it or cite))
    start = [f"Architectures: {', '.join(sources)}."] if sources else []
    return " ".join([*start, *map(prose, methods(comparison))])


def _tables(comparison: Comparison) -> dict[str, str]:
    """{file: table}: the comparison in as many tables as its columns need, the pairs, and what differs by model."""
    found = {}
    blocks = _blocks(comparison)
    name_column = _name_column([group.name for group in comparison.groups])
    for i, block in enumerate(blocks, 1):
        rows = [
            [breakable(group.name), *(escape(column.cell(comparison, group)) for column in block)]
            for group in comparison.groups
        ]
        spec = "".join(WORDS % 7.0 if column.key == "versus_baseline" else "r" for column in block)
        caption = f"Best {comparison.metric_name} first; mean over seeds ± half-width of the 95 % interval."
        part = f" Part {i} of {len(blocks)}." if len(blocks) > 1 else ""
        head = ["", *(escape(column.title) for column in block)]
        found[f"results-{i}"] = table(head, rows, name_column + spec, escape(caption + part), f"tab:results-{i}")
    if pairs := _pairs(comparison):
        found["pairs"] = pairs
    return found


def _blocks(comparison: Comparison) -> list[list[Column]]:
    """The columns in order, as many side by side as the width of a page takes."""
    blocks: list[list[Column]] = [[]]
    used = 0
    for column in filled_columns(comparison):
        width = 34 if column.key == "versus_baseline" else 2 + max(
            len(text) for text in (column.title, *(column.cell(comparison, group) for group in comparison.groups))
        )  # fmt: skip
        if blocks[-1] and used + width > LINE:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += width
    return blocks


def _name_column(names: Sequence[str]) -> str:
    longest = max(len(name) for name in names)
    return "l" if longest <= NAME_WIDTH else WORDS % 4.5


def _pairs(comparison: Comparison) -> str | None:
    ranked = [group.name for group in comparison.groups if group.counted]
    pairs = [
        pair
        for i, first in enumerate(ranked)
        for second in ranked[i + 1 :]
        if (pair := comparison.pair(first, second)) is not None and pair.difference is not None
    ]
    if not pairs:
        return None
    rows = []
    for pair in pairs[:MAX_PAIRS]:
        p = MISSING if pair.p_adjusted is None else f"{pair.p_adjusted:.2g}"
        checks = comparison.confounding_checks(pair.first, pair.second) if pair.verdict in ("better", "worse") else ()
        judged = f"{pair.verdict}, confounded ({', '.join(checks)})" if checks else pair.verdict
        cells = [str(len(pair.seeds)), *_difference(pair.interval), p]
        names = (breakable(pair.first), breakable(pair.second))
        rows.append([*names, *map(escape, cells), escape(judged)])
    left = f" The first {MAX_PAIRS} of {len(pairs)}; csv/pairs.csv has all." if len(pairs) > MAX_PAIRS else ""
    what = f"Paired differences in {comparison.metric_name}, first minus second"
    caption = f"{what}, with the intervals of Holm's correction.{left}"
    columns = _name_column(ranked).replace("4.5", "3.2") * 2 + "rrrr" + WORDS % 3.6
    head = ["first", "second", "seeds", "difference", "interval", "Holm p", "first is"]
    return table(head, rows, columns, escape(caption), "tab:pairs")


def _difference(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return MISSING, MISSING
    bounds = MISSING if interval.low is None else f"[{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"{interval.mean:+.3f}", bounds


def _figures(comparison: Comparison, folder: Path) -> list[str]:
    from hf_arch.report.figures import figures
    from hf_arch.report.plots import write_vector

    lines = []
    for section, found in figures(comparison).items():
        lines.append(rf"\subsection{{{escape(section)}}}")
        for i in range(0, len(found), 2):
            lines += [r"\begin{figure}[htbp]", r"\centering"]
            for figure in found[i : i + 2]:
                write_vector(figure, folder)
                lines += [
                    r"\begin{minipage}[t]{0.48\linewidth}\centering",
                    rf"\includegraphics[width=\linewidth]{{figures/{figure.key}.pdf}}",
                    rf"\caption{{{prose(figure.title)}. {prose(figure.note)}}}\label{{fig:{figure.key}}}",
                    r"\end{minipage}\hfill",
                ]
            lines.append(r"\end{figure}")
    return [*lines, r"\clearpage"]


def _audit(comparison: Comparison) -> list[str]:
    found = [finding for finding in comparison.findings if finding.severity != "ok"]
    fine = [finding.check for finding in comparison.findings if finding.severity == "ok"]
    items = [rf"\item \textbf{{{finding.severity}}}: {prose(finding.sentence)}" for finding in found]
    lines = ["\\section{Audit}"]
    lines += ["\\begin{itemize}", *items, "\\end{itemize}"] if items else []
    lines += [escape(f"In order: {', '.join(dict.fromkeys(fine))}.") + "\n"] if fine else []
    return lines


def _sources(comparison: Comparison, folder: Path) -> list[str]:
    """The recipe of the baseline whole, of the others what differs; each whole in `folder`; then the plugins."""
    names = _unique([file_name(group.name) for group in comparison.groups])
    base = comparison.group(comparison.baseline) if comparison.baseline else comparison.groups[0]
    for group, name in zip(comparison.groups, names, strict=True):
        write_text(folder / f"recipe-{name}.yaml", recipe_text(group.reference))
    lines = [rf"\section{{Recipe of {breakable(base.name)}}}", *_listing(recipe_text(base.reference), folder, "recipe")]
    lines += [line for group in comparison.groups if group is not base for line in _differences(group, base)]
    plugins = plugin_files(comparison)
    for (name, text), safe in zip(plugins.items(), _unique([file_name(name) for name in plugins]), strict=True):
        write_text(folder / "plugins" / f"{safe.removesuffix('-py')}.py", text)
        lines += [rf"\section{{Plugin {breakable(name)}}}", *_listing(text, folder, f"plugin-{safe}")]
    return lines


def _listing(text: str, folder: Path, name: str) -> list[str]:
    write_text(folder / "listings" / f"{name}.txt", ascii_lines(text))
    return [rf"\lstinputlisting{{sources/listings/{name}.txt}}"]


def _differences(group: Group, base: Group) -> list[str]:
    found = recipe_differences(group.reference, base.reference)
    items = [rf"\item {breakable(key)}: {breakable(value)} (there: {breakable(other)})" for key, value, other in found]
    body = ["\\begin{itemize}", *items, "\\end{itemize}"] if items else ["The same recipe.\n"]
    return [rf"\section{{Recipe of {breakable(group.name)}: what differs}}", *body]


def _unique(names: Sequence[str]) -> list[str]:
    """The names, with a number where an earlier one is the same for a file system that ignores case."""
    found: list[str] = []
    for name in names:
        numbered, count = name, 1
        while numbered.lower() in (taken.lower() for taken in found):
            count += 1
            numbered = f"{name}-{count}"
        found.append(numbered)
    return found
