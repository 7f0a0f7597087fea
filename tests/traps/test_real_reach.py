"""What a part may reach for from inside itself: the trainer, its rows, the optimiser, modules around it, tables of
transformers and settings of torch. Really trained, each in a fork of its own, in which the rest of the process is new.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from textwrap import indent

import pytest

from hf_arch.analysis.compare import compare_runs
from tests.traps.real_sets import TINY, train_seed
from tests.traps.test_real import write_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEEDS = (1, 2)
PLUGIN = """
import gc
import sys
import threading
import time
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_arch.core.registry import FFNS
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.cost import MixerCost
from hf_arch.layers.ffns.ffn import MLP
from hf_arch.training.compat import AlignedLabelSmoother

PLAIN = ALL_ATTENTION_FUNCTIONS["sdpa"]
SEEN = {}


def living(name):
    return [one for one in gc.get_objects() if type(one).__name__ == name]


def trainer():
    return living("ArchTrainer")[-1]


def model():
    return trainer().accelerator.unwrap_model(trainer().model)


def sharper(module, query, *rest, **more):
    return PLAIN(module, 1.5 * query, *rest, **more)


class Sharper:
    __call__ = staticmethod(sharper)


class Watching(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Adding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, loss):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, torch.ones(())


class Louder(nn.Linear):
    def forward(self, x):
        return 1.3 * super().forward(x)


def shrink(weights):
    for _ in range(1000):
        time.sleep(0.01)
        for weight in weights:
            weight.data.mul_(0.9999)


def rough(tensor):
    return tensor.bfloat16() if tensor.dtype is torch.float32 else tensor


def fine(tensor):
    return tensor.float() if tensor.dtype is torch.bfloat16 else tensor


ROUGH = torch.autograd.graph.saved_tensors_hooks(rough, fine)


def mask_labels():
    frame = sys._getframe()
    while frame is not None:
        held = frame.f_locals.get("inputs")
        if isinstance(held, dict) and "shift_labels" in held:
            held["shift_labels"][:, ::4] = -100
            return
        frame = frame.f_back


#imported#


@FFNS.register("own")
class Own(MLP):
    begun, steps = False, 0

    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
#built#

    def cost(self, seq_len):
        cost = super().cost(seq_len)
#cost#
        return cost

    def first_training(self):
        pass
#first#

    def first_look(self):
        pass
#looked#

    def forward(self, x, context=EMPTY_CONTEXT):
        if self.training and not self.begun:
            self.begun = True
            self.first_training()
        elif not self.begun:
            self.first_look()
        self.steps += self.training
        out = super().forward(x, context=context)
#each#
        return out
"""
"""`#...#` are where a trap is put: as the plugin is imported, in the first step, before it, in each pass."""

IN_TRAINING = "if self.training:\n    "
GROUPS = f"{IN_TRAINING}for group in trainer().optimizer.param_groups:\n        "
VALIDATION = "rows = min(living('TokenDataset'), key=len)\n"
TRAPS: dict[str, tuple[str, str, str]] = {
    "an attention of transformers": ("code", "imported", "ALL_ATTENTION_FUNCTIONS['sdpa'] = sharper"),
    "an object in its place": ("code", "imported", "ALL_ATTENTION_FUNCTIONS['sdpa'] = Sharper()"),
    "an activation of transformers": ("code", "imported", "dict.__setitem__(ACT2FN, 'silu', nn.GELU)"),
    "an operator of torch": (
        "code",
        "imported",
        "LIBRARY = torch.library.Library('aten', 'IMPL')\n"
        "LIBRARY.impl('silu', lambda x: x * torch.sigmoid(1.7 * x), 'CPU')",
    ),
    "smallest numbers": ("code", "imported", "torch.set_flush_denormal(True)"),
    "a way of adding up": (
        "code",
        "imported",
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
    ),
    "products in training": (
        "code",
        "each",
        "torch.set_float32_matmul_precision('medium' if self.training else 'highest')",
    ),
    "a mode": ("code", "first", "Watching().__enter__()"),
    "what is kept for the backward pass": ("code", "first", "ROUGH.__enter__()"),
    "a thread": (
        "code",
        "first",
        "threading.Thread(target=shrink, args=(list(self.parameters()),), daemon=True).start()",
    ),
    "the loss of the model": (
        "code",
        "first",
        "inner = model().loss_function\nmodel().loss_function = lambda **given: 0.9 * inner(**given)",
    ),
    "smoother labels": ("code", "first", "trainer().label_smoother = AlignedLabelSmoother(epsilon=0.1)"),
    "the class of the head": ("code", "first", "model().lm_head.__class__ = Louder"),
    "a factor of attention": ("code", "first", "model().model.layers[0].mixer.product.scaling *= 2"),
    "betas": ("settings", "each", f"{GROUPS}group['betas'] = (0.5, 0.99) if self.steps % 16 else (0.9, 0.95)"),
    "a decay": ("settings", "each", f"{GROUPS}group['weight_decay'] = 1.0 if self.steps % 16 else 0.1"),
    "momentum": (
        "optimiser",
        "each",
        f"{IN_TRAINING}for kept in trainer().optimizer.state.values():\n        kept['exp_avg'].zero_()",
    ),
    "rates of the schedule": (
        "settings",
        "first",
        "schedule = trainer().lr_scheduler\nschedule.base_lrs = [5 * rate for rate in schedule.base_lrs]",
    ),
    "a rate of one group": ("schedule", "first", "trainer().lr_scheduler.base_lrs[-1] *= 5"),
    "steps between looks": (
        "optimiser",
        "each",
        "if self.training and self.steps % 16 in (7, 8):\n    for weight in self.parameters():\n"
        "        weight.data.mul_(0.98)",
    ),
    "gradients of earlier parts of a batch": (
        "losses",
        "each",
        f"{IN_TRAINING}for weight in self.parameters():\n        if weight.grad is not None:\n"
        "            weight.grad.mul_(5)",
    ),
    "a loss in the backward pass": (
        "losses",
        "each",
        f"{IN_TRAINING}out = Adding.apply(out, 0.05 * out.square().mean())",
    ),
    "masked labels": ("order", "each", f"{IN_TRAINING}mask_labels()"),
    "another order": (
        "order",
        "looked",
        "for one in living('ArchTrainer'):\n    one.order = type(one.order)(one.order.num_rows, 99)",
    ),
    "parameters that are counted and not there": (
        "parameters",
        "built",
        "if self.up_proj.weight.device.type == 'meta':\n    self.more = nn.Linear(64, 64)",
    ),
    "active parameters": ("active parameters", "cost", "cost += MixerCost(inactive_parameters=4096)"),
    "documents before": (
        "scoring",
        "each",
        "out = out + 0.5 * nn.functional.pad(out, (0, 0, 1, 0))[:, :-1]",
    ),
    "bytes of the text": ("data", "first", f"{VALIDATION}rows.num_bytes = int(1.5 * rows.num_bytes)"),
    "easier rows": (
        "data",
        "first",
        f"{VALIDATION}easy = np.array(rows.stream._map(0))\nrows.stream._maps[0] = np.resize(easy[:64], easy.shape)",
    ),
}
"""{trap: (what names it, where, how)}"""
HONEST: dict[str, tuple[str, str]] = {
    "nothing": ("each", "pass"),
    "an attention under a name of its own": ("imported", "ALL_ATTENTION_FUNCTIONS['own'] = sharper"),
    "an operator of its own": (
        "imported",
        "LIBRARY = torch.library.Library('own', 'DEF')\nLIBRARY.define('twice(Tensor x) -> Tensor')\n"
        "LIBRARY.impl('twice', lambda x: x + x, 'CPU')",
    ),
    "modes and hooks within its part": (
        "each",
        "with Watching(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):\n    out = out + 0 * out",
    ),
    "a look around": ("each", f"{GROUPS}SEEN['rate'] = group['lr']\n    SEEN['rows'] = len(trainer().train_dataset)"),
    "a thread that has ended": (
        "first",
        "helper = threading.Thread(target=list)\nhelper.start()\nhelper.join()",
    ),
    "the token before, of its document": (
        "each",
        "before, documents = nn.functional.pad(out, (0, 0, 1, 0))[:, :-1], context.layout.segment_ids\n"
        "if documents is not None:\n"
        "    same = documents == nn.functional.pad(documents, (1, 0), value=-1)[:, :-1]\n"
        "    before = before * same[..., None]\n"
        "out = out + 0.5 * before",
    ),
    "numbers of its own": ("each", "self.act_fn.seen = self.steps"),
}


def plugin_of(where: str, how: str) -> str:
    """The plugin with this at that place."""
    text = PLUGIN
    for place in ("imported", "built", "cost", "first", "looked", "each"):
        text = text.replace(f"#{place}#", indent(how if place == where else "", "" if place == "imported" else " " * 8))
    return text


def train_here(root: str) -> None:
    """Every side, each in a fork of this process."""
    places = {"plain": None, **HONEST, **{name: trap[1:] for name, trap in TRAPS.items()}}
    for name, place in places.items():
        if (child := os.fork()) == 0:
            try:
                train_side(Path(root), name, place)
            except BaseException:  # its test finds no run
                traceback.print_exc()
            os._exit(0)
        os.waitpid(child, 0)


def train_side(root: Path, name: str, place: tuple[str, ...] | None) -> None:
    model = {**TINY["model"], "ffn": "mlp" if place is None else "own"}
    if place is not None:
        (root / name).mkdir()
        (root / name / "own.py").write_text(plugin_of(*place))
        model["plugins"] = [str(root / name / "own.py")]
    training = {**TINY["training"], "max_steps": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    data = {"corpus": f"{root}/text.txt", "tokenizer": "byte", "sequence_length": 64, "isolate_documents": True}
    for seed in SEEDS:
        side = "plain" if place is None else "own"
        folder, vary = root / name / "runs" / f"{side}-{seed}", {"vary": ["model.ffn"]}
        train_seed(
            folder, side, seed, "own better than plain", model=model, training=training, data=data, experiment=vary
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reach")
    write_text(root)
    command = f"from tests.traps.test_real_reach import train_here; train_here({str(root)!r})"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])
    return root


@pytest.mark.parametrize("what", [*HONEST, *TRAPS])
def test_what_a_part_reaches_for_is_named(what: str, root: Path, tmp_path: Path) -> None:
    for side in ("plain", what):
        shutil.copytree(root / side / "runs", tmp_path / "runs", dirs_exist_ok=True)
    comparison = compare_runs(tmp_path / "runs")
    found = [finding for finding in comparison.confounds("own", "plain") if finding.check != "still learning"]
    checks = {finding.check for finding in found}
    if what in HONEST:
        assert not checks, [finding.sentence for finding in found]
    else:
        assert TRAPS[what][0] in checks, checks
        assert not {verdict.outcome for verdict in comparison.verdicts} & {"supported", "contradicted"}
