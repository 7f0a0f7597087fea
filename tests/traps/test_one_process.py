"""Several runs of one process, really trained: what a plugin did for one of them is not taken for what it does in
another, and what it left to the others is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.real_sets import TINY, train_seed
from tests.traps.test_real import write_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEEDS = (1, 2)
READS = """
from pathlib import Path

from hf_arch.core.registry import FFNS
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.ffns.ffn import MLP


@FFNS.register("own")
class Own(MLP):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.factor = 1.0
        if config.num_attention_heads == 4:
            self.factor = float(Path(__file__).with_suffix(".factor").read_text())

    def forward(self, x, context=EMPTY_CONTEXT):
        return self.factor * super().forward(x, context=context)
"""
REPLACES = """
from hf_arch.core.registry import FFNS
from hf_arch.layers.ffns.ffn import MLP
from hf_arch.training.trainer import ArchTrainer

inner = ArchTrainer.compute_loss


def compute_loss(self, *args, **kwargs):
    own = any(isinstance(module, Own) for module in self.model.modules())
    return (0.5 if own else 1.0) * inner(self, *args, **kwargs)


ArchTrainer.compute_loss = compute_loss


@FFNS.register("own")
class Own(MLP):
    pass
"""


def train_here(root: str, plain_uses_it: bool) -> None:
    """`four` and `two`, one after the other, under each seed."""
    plugin = {"ffn": "own", "plugins": [f"{root}/own.py"]}
    sides = {
        "four": {**plugin, "num_attention_heads": 4},
        "two": {**(plugin if plain_uses_it else {"ffn": "mlp"}), "num_attention_heads": 2},
    }
    data = {"corpus": f"{root}/text.txt", "tokenizer": "byte", "sequence_length": 64}
    for seed in SEEDS:
        for name, model in sides.items():
            train_seed(
                Path(root) / "runs" / f"{name}-{seed}",
                name,
                seed,
                "four better than two",
                model={**TINY["model"], **model},
                data=data,
                training={**TINY["training"], "max_steps": 8},
                experiment={"vary": ["model.num_attention_heads", "model.ffn"]},
            )


@pytest.mark.parametrize(("plugin", "plain_uses_it"), [(READS, True), (REPLACES, False)], ids=["reads", "replaces"])
def test_what_a_run_leaves_to_the_next(plugin: str, plain_uses_it: bool, tmp_path: Path) -> None:
    write_text(tmp_path)
    (tmp_path / "own.py").write_text(plugin)
    (tmp_path / "own.factor").write_text("1.0")
    command = f"from tests.traps.test_one_process import train_here; train_here({str(tmp_path)!r}, {plain_uses_it})"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])
    comparison = compare_runs(tmp_path / "runs")
    found = {finding.check: finding.sentence for finding in comparison.confounds("four", "two")}
    if plain_uses_it:
        assert set(found) <= {"still learning"}, found
        [files] = [finding for finding in comparison.findings if finding.check == "plugin files"]
        assert files.severity == "note" and "own.factor: four; none: two" in files.sentence
    else:
        assert "left to later runs of its process" in found["code"]
        assert not {verdict.outcome for verdict in comparison.verdicts} & {"supported", "contradicted"}
