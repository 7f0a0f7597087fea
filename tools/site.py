"""Lays out the site that mkdocs builds: docs/, the pages of the repository's root, and a page of API a folder.

    python tools/site.py build && mkdocs build --strict --config-file build/mkdocs.yml      (scripts/docs.sh does both)

It needs no import of hf_arch: mkdocstrings reads docstrings from the sources.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPOSITORY_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REPOSITORY_PAGES |= {"SECURITY.md": "security.md", "RELEASING.md": "releasing.md"}
NAVIGATION = {
    "Home": "index.md",
    "Tutorials": [
        "getting_started.md",
        "first_comparison.md",
        "first_gpu_run.md",
        "new_mixer.md",
        "attention.md",
        "parts.md",
    ],
    "How-to": [
        "how_to.md",
        "pretraining.md",
        "usage.md",
        "experiments.md",
        "training.md",
        "evaluation.md",
        "sharing.md",
        "coming_from.md",
    ],
    "Reference": [
        "recipe_keys.md",
        "cli.md",
        "architectures.md",
        "contracts.md",
        "recurrences.md",
        "performance.md",
        "environment.md",
        "glossary.md",
    ],
    "Explanation": ["p_values.md", "atlas.md", "limits.md", "architecture.md"],
    "Project": ["changelog.md", "contributing.md", "releasing.md", "security.md"],
}


def lay_out(target: Path) -> None:
    """Writes `target/mkdocs.yml` and `target/site-source/`."""
    source = target / "site-source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "docs", source)
    for name, page in REPOSITORY_PAGES.items():
        (source / page).write_text(_relinked((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    placed = {page for entry in NAVIGATION.values() for page in ([entry] if isinstance(entry, str) else entry)}
    rest = sorted(page.name for page in source.glob("*.md") if page.name not in placed)  # a new page is never lost
    navigation: list[object] = [
        {title: [*entry, *(rest if title == "Reference" else [])] if isinstance(entry, list) else entry}
        for title, entry in NAVIGATION.items()
    ]
    navigation.append({"API": api_pages(ROOT / "hf_arch", source / "api")})
    base = json.dumps(str(Path("..") / "mkdocs.yml"))
    text = f"INHERIT: {base}\ndocs_dir: site-source\nsite_dir: site\nnav: {json.dumps(navigation)}\n"
    (target / "mkdocs.yml").write_text(text, encoding="utf-8")


def api_pages(package: Path, folder: Path) -> list[dict[str, str]]:
    """One page for the package itself and one for each folder of it, with every public module; their entries."""
    folder.mkdir(parents=True)
    entries = []
    folders = {path.parent for path in package.rglob("__init__.py")}
    for place in sorted(folders, key=lambda path: path.relative_to(package.parent).parts):
        parts = place.relative_to(package.parent).parts
        name = ".".join(parts)
        modules = [path.stem for path in sorted(place.glob("*.py")) if not path.stem.startswith("_")]
        text = "".join(f"\n::: {name}.{module}\n" for module in modules)
        (folder / f"{'_'.join(parts)}.md").write_text(f"# {name}\n{text}", encoding="utf-8")
        entries.append({name: f"api/{'_'.join(parts)}.md"})
    return entries


def _relinked(text: str) -> str:
    """Links of a page in the root as they are beside the pages of docs/; those to other files become plain text."""

    def change(match: re.Match[str]) -> str:
        label, link = match[1], match[2]
        path, mark, anchor = link.partition("#")
        if "://" in link or not path:
            return match[0]
        page = REPOSITORY_PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return label if page is None else f"[{label}]({page}{mark}{anchor})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", change, text)


if __name__ == "__main__":
    lay_out(ROOT / sys.argv[1])
