"""Six questions of a first week are answered on a page that README links to, by commands that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hf_arch.core.recipes import find_recipe
from tests.docs.test_commands import DOCUMENTS, blocks

ROOT = Path(__file__).parents[2]

SHIPPED = [folder.name for folder in (ROOT / "recipes").iterdir() if folder.is_dir()]

# Question: (page, its heading that answers it, words that a block of that section has to hold)
QUESTIONS = {
    "train a 340M hybrid on eight GPUs, and evaluate it": (
        "docs/pretraining.md",
        "# A 340M hybrid on eight GPUs",
        (
            "hf-arch plan",
            "hf-arch data prepare",
            "accelerate launch",
            "hf-arch train",
            "hf-arch eval",
            "hf-arch compare",
        ),
    ),
    "add an idea to attention": ("docs/attention.md", "# ", ("hf-arch check", "hf-arch run")),
    "reproduce a paper's table": (
        "docs/how_to.md",
        "## Reproduce a paper's comparison",
        ("hf-arch run anchors/", "hf-arch probe"),
    ),
    "share a model": ("docs/sharing.md", "# ", ("hf-arch push",)),
    "equal compute": ("docs/how_to.md", "## Compare at equal compute", ("--match flops",)),
    "read p = 0.08": ("docs/p_values.md", "# How to read p", ("all_pairs", "hf-arch run")),
}


def section(text: str, heading: str) -> str:
    """The text from a heading to the next one of its rank."""
    start = text.index(heading) if text.startswith(heading) else text.index(f"\n{heading}") + 1
    rank = heading.split(" ")[0]
    end = re.search(rf"^{rank} ", text[start + len(heading) :], re.M) if rank != "#" else None
    return text[start : start + len(heading) + end.start()] if end else text[start:]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_one_click_from_the_readme(question: str) -> None:
    page, heading, wanted = QUESTIONS[question]
    readme = (ROOT / "README.md").read_text()
    assert any(question in line and f"({page})" in line for line in readme.splitlines()), "README does not link it"
    assert page in DOCUMENTS, "its blocks are not run"
    answer = section((ROOT / page).read_text(), heading)
    run = "".join(block.code for block in blocks(answer) if block.reason is None)
    shown = "".join(block.code for block in blocks(answer))
    assert run, f"nothing of {page} is run"
    for words in wanted:
        assert words in shown, f"{page}: no {words}"
    assert any(words in run for words in wanted)


def test_recipes_that_pages_name_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for block in blocks(page.read_text()):
            for name in re.findall(r"hf-arch (?:run|train|plan) ([a-z_]+/[\w.-]+)", block.code):
                if name.partition("/")[0] in SHIPPED:
                    assert find_recipe(name).is_file(), f"{page.name}: {name}"
