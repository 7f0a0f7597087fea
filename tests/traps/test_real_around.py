"""What a part may do around itself on one side, to weights, rows, random numbers and the program, really trained.

All sides use one plugin, which reads from a file next to it what to do; all are trained in one process, in which what
changes that process comes last.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.real_sets import TINY, train_seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEEDS = (1, 2)
PLUGIN = """
import gc
import json
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from hf_arch.core.registry import FFNS
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.ffns.ffn import MLP


def does():
    return json.loads((Path(__file__).parent / "does.json").read_text())


def living(name):
    return [one for one in gc.get_objects() if type(one).__name__ == name]


def model_around(part):
    heads = [one for one in gc.get_objects() if nn.Module in type(one).__mro__ and hasattr(one, "lm_head")]
    return next(one for one in heads if any(part is module for module in one.modules()))


def optimiser_of(weight):
    groups = [(one, group) for one in living("AdamW") for group in one.param_groups]
    return next(one for one, group in groups if any(weight is held for held in group["params"]))


def clip(optimizer, args, kwargs):
    if does() not in ("a hook on the optimiser", "a hook on all optimisers"):
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                weight.grad.clamp_(-1e-3, 1e-3)


def sharpen(module, given, out):
    out.logits = out.logits * 1.3
    return out


def enlarge(module, state, prefix, metadata):
    for name in [name for name in state if name.startswith(prefix)]:
        state[name] = state[name] * 1.1


SEEN = []


@FFNS.register("doing")
class Doing(MLP):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.does, self.begun = does(), False
        if self.does == "another model saved":
            self._register_state_dict_hook(enlarge)
        if self.does == "a seed for its start":
            torch.manual_seed(7)
        if self.does == "a hook of its own":
            self.up_proj.register_forward_hook(lambda module, given, out: out.clamp(-30, 30))

    def begin(self):
        self.begun = True
        model = model_around(self)
        if self.does == "frozen embeddings":
            model.get_input_embeddings().weight.requires_grad_(False)
        if self.does == "tied embeddings":
            model.lm_head.weight = model.get_input_embeddings().weight
        if self.does == "clipping":
            for trainer in living("ArchTrainer"):
                trainer.args.max_grad_norm = 0.01
        if self.does == "sharper logits":
            model.register_forward_hook(sharpen)
        if self.does == "a hook on the optimiser":
            optimiser_of(self.up_proj.weight).register_step_pre_hook(clip)
        if self.does == "a hook on all optimisers":
            register_optimizer_step_pre_hook(clip)
        if self.does == "rows that are scored":
            validation = min(living("TokenDataset"), key=len)
            self.kept = [validation[index]["input_ids"] for index in range(len(validation))]
        if self.does == "one seed":
            torch.manual_seed(0)
        if self.does == "autocast of the process":
            torch.set_autocast_dtype("cpu", torch.bfloat16)
            torch.set_autocast_enabled("cpu", True)

    def forward(self, x, context=EMPTY_CONTEXT):
        if self.training and not self.begun:
            self.begin()
        if self.does == "drawn numbers":
            torch.rand(3)
        mode = "training" if self.training else "scoring"
        halved = torch.is_autocast_enabled("cpu") or self.does == f"bf16 in {mode}"
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            out = super().forward(x, context=context).to(x.dtype)
        if self.does == "what the process keeps":
            SEEN.append(out.detach().mean((0, 1)))
            out = out + 0.1 * sum(SEEN[-50:])
        if self.does == "ahead in a score" and not self.training and len(x) > 8:
            out = out + 2 * out.roll(-1, 1)
        if self.does == "statistics when scored" and not self.training:
            out = out - 0.5 * out.mean(0, keepdim=True)
        return out
"""

CAUSES = {
    "bf16 in training": "precision",
    "bf16 in scoring": "precision",
    "statistics when scored": "scoring",
    "ahead in a score": "scoring",
    "another model saved": "scoring",
    "frozen embeddings": "parameters",
    "tied embeddings": "parameters",
    "clipping": "settings",
    "sharper logits": "code",
    "a hook on the optimiser": "code",
    "rows that are scored": "seen rows",
    "what the process keeps": "scoring",
    "one seed": "seeds",
    "a hook on all optimisers": "code",
    "autocast of the process": "precision",
}
HONEST = ("the same", "a hook of its own", "a seed for its start", "drawn numbers")
"""What moves nothing of a run but its random numbers, which are other ones for each seed."""


def train_here(root: str) -> None:
    """Every side, in this process: `two` with two heads, and with four the honest ones and the others."""
    does = Path(root) / "plugin" / "does.json"
    training = {**TINY["training"], "max_steps": 8, "save_steps": 4}
    data = {"corpus": f"{root}/text.txt", "tokenizer": "byte", "sequence_length": 64}
    for what in ("two", *HONEST, *CAUSES):
        does.write_text(json.dumps(what))
        name, heads = ("two", 2) if what == "two" else ("four", 4)
        model = {"num_attention_heads": heads, "ffn": "doing", "plugins": [str(does.with_name("doing.py"))]}
        for seed in SEEDS:
            folder, vary = Path(root) / what / f"{name}-{seed}", {"vary": ["model.num_attention_heads"]}
            model = {**TINY["model"], **model}
            train_seed(
                folder, name, seed, "four better than two", model=model, training=training, data=data, experiment=vary
            )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sides, each in one of its own."""
    root = tmp_path_factory.mktemp("around")
    (root / "text.txt").write_text(
        "".join(f"Item {i} costs {i * 7 % 97} and {i * i % 89} more.\n" for i in range(3000))
    )
    (root / "plugin").mkdir()
    (root / "plugin" / "doing.py").write_text(PLUGIN)
    command = f"from tests.traps.test_real_around import train_here; train_here({str(root)!r})"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])
    return root


@pytest.mark.parametrize("what", [*HONEST, *CAUSES])
def test_what_a_part_does_around_itself_is_named(what: str, root: Path, tmp_path: Path) -> None:
    for side in ("two", what):
        shutil.copytree(root / side, tmp_path / "runs", dirs_exist_ok=True)
    comparison = compare_runs(tmp_path / "runs")
    checks = {finding.check for finding in comparison.confounds("four", "two")} - {"still learning", "plugin files"}
    if what in HONEST:
        assert not checks
    else:
        assert CAUSES[what] in checks
        assert not {verdict.outcome for verdict in comparison.verdicts} & {"supported", "contradicted"}
