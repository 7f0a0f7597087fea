"""Ideas of one's own against what there is, really trained: a plugin on one side alone, and nothing hidden in it.

Each is what `hf-arch new` writes. The audit names what an idea does to the size, and is silent on all else.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.cli.new import new_files
from tests.traps.real_sets import TINY, train_seed
from tests.traps.test_real import write_text

pytestmark = pytest.mark.slow
SEEDS = (1, 2)
LIST = ("site", "loss")
"""Kinds of which a model has several."""
SIZES = {"parameters"}
ACROSS = {*SIZES, "state", "learning rate", "branch scale"}
"""What differs between mixers without anything to hide: neither was matched, scaled alike, or tuned."""
IDEAS: dict[str, tuple[str, set[str]]] = {
    "ffn": ("ffn", SIZES),
    "norm": ("norm", set()),
    "mixer": ("mixer", ACROSS),
    "stream": ("stream", set()),
    "loss": ("losses", set()),
    "position": ("position", {"branch scale"}),
    "site": ("sites", SIZES | {"short convolution"}),
}
"""{kind: (its key, what may be named)}. Cosines that are added to embeddings make the stream larger, and every branch
smaller against it."""


def train_here(root: str, kind: str) -> None:
    """The seeds with one of these ideas, in this process; without any for an empty name."""
    model: dict[str, Any] = dict(TINY["model"])
    if kind:
        model |= {IDEAS[kind][0]: [f"own_{kind}"] if kind in LIST else f"own_{kind}"}
        model["plugins"] = [f"{root}/own_{kind}.py"]
    data = {"corpus": f"{root}/text.txt", "tokenizer": "byte"}
    name = kind or "plain"
    for seed in SEEDS:
        folder = Path(root) / name / f"{name}-{seed}"
        train_seed(folder, name, seed, f"{name} better than plain", model=model, data=data)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugins, and the plain side, trained where none of them was ever loaded."""
    root = tmp_path_factory.mktemp("ideas")
    write_text(root)
    for kind in IDEAS:
        for file, text in new_files(kind, f"own_{kind}").items():
            (root / file).write_text(text)
    command = f"from tests.traps.test_honest_plugins import train_here; train_here({str(root)!r}, '')"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])
    return root


@pytest.mark.parametrize("kind", IDEAS)
def test_an_honest_idea_is_not_suspected(kind: str, root: Path) -> None:
    train_here(str(root), kind)
    for seed in SEEDS:
        shutil.copytree(root / "plain" / f"plain-{seed}", root / kind / f"plain-{seed}")
    found = compare_runs(root / kind).confounds(kind, "plain")
    checks = {finding.check for finding in found} - {"still learning"}  # two dozen steps end nowhere
    assert checks <= IDEAS[kind][1], [(one.check, one.sentence) for one in found]
