"""What a plugin may do on one side without a word in any recipe, really trained.

Both sides use the same plugin file, which reads from a file next to it what to do: `does.json` of one side says it. The
file itself is named (`plugin files`), and so is what it did.
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
from tests.traps.test_real import write_text

pytestmark = pytest.mark.slow
SEEDS = (1, 2, 3)
PLUGIN = """
import gc
import json
import time
from pathlib import Path

import torch
from torch import nn
from transformers import TrainerCallback

import hf_arch.training.trainer as trainer
from hf_arch.core.registry import FFNS
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.ffns.ffn import MLP


def does():
    file = Path(__file__).parent / "does.json"
    return json.loads(file.read_text()) if file.exists() else ""


def step(weight):
    weight.data.add_(weight.grad, alpha=-0.1)
    weight.grad = None


def average_of(module):
    held, seen = {}, []

    def see():
        seen.append(1)
        for name, weight in module.named_parameters():
            held[name] = held[name].lerp(weight.detach(), 0.2) if name in held else weight.detach().clone()

    def put():
        if len(seen) >= 24:
            with torch.no_grad():
                for name, weight in module.named_parameters():
                    weight.copy_(held[name])

    return see, put


def optimiser_of(module):
    own = id(module.up_proj.weight)
    found = [one for one in gc.get_objects() if type(one).__name__ == "AdamW"]
    return [one for one in found if any(id(held) == own for group in one.param_groups for held in group["params"])]


def step_twice(optimiser):
    inner = optimiser.step

    def step(*args, **kwargs):
        inner(*args, **kwargs)
        return inner(*args, **kwargs)

    optimiser.step = step


class Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.factor * grad, None


@FFNS.register("doing")
class Doing(MLP):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.does = does()
        self.size = config.hidden_size
        wide = 16 * self.size
        self.hidden = [nn.Linear(self.size, wide, bias=False), nn.Linear(wide, self.size, bias=False)]
        if self.does == "hidden":  # stepped by itself, as soon as a gradient is there
            for layer in self.hidden:
                layer.weight.register_post_accumulate_grad_hook(step)
        self.register_buffer("memory", torch.zeros(self.size, self.size), persistent=False)
        self.average, self.passes = None, 0
        if self.does == "counter":
            self.register_buffer("counter", torch.tensor(0))
        if self.does == "scale":
            self.register_buffer("scale", torch.tensor(1.0))
        if self.does == "statistics":
            self.statistics = nn.BatchNorm1d(self.size, affine=False)
        if self.does == "hook":
            self.register_full_backward_hook(lambda module, into, out: tuple(one.clamp(-1e-4, 1e-4) for one in into))
        if self.does == "bf16":
            self.to(torch.bfloat16)
        self.optimiser = []
        if self.does == "put average":
            self.see, self.put = average_of(self)

    def of_its_own(self, x, context):
        with torch.enable_grad():
            loss = (super().forward(x.detach(), context=context) - x.detach().roll(-1, 1)).square().mean()
            if self.does == "own loss":
                loss.backward()
                return
            found = torch.autograd.grad(loss, list(self.parameters()))
        for weight, grad in zip(self.parameters(), found):
            weight.data.add_(grad, alpha=-0.1)

    def forward(self, x, context=EMPTY_CONTEXT):
        if self.does == "put average":
            self.see() if self.training else self.put()
        if self.does in ("own loss", "own step") and self.training:
            self.of_its_own(x, context)
        if self.does in ("twice", "rates") and self.training:
            if not self.optimiser:
                self.optimiser = optimiser_of(self)
                for optimiser in self.optimiser if self.does == "twice" else ():
                    step_twice(optimiser)
            for optimiser in self.optimiser if self.does == "rates" else ():
                for group in optimiser.param_groups:
                    group["lr"] *= 4
        if self.does == "bf16":
            return super().forward(x.bfloat16(), context=context).to(x.dtype)
        out = super().forward(x, context=context)
        if self.does == "noise" and self.training:
            out = out * torch.empty_like(out).bernoulli_(0.8) / 0.8
        if self.does == "several" and not self.training:
            near = [super(Doing, self).forward(x + part * x.flip(-1), context=context) for part in (-0.05, 0.05)]
            out = (out + sum(near)) / 3
        if self.does == "seeded" and self.training:
            seeded = torch.Generator().manual_seed(int(x.detach().double().abs().sum() * 1e4) % 2**31)
            out = out * (torch.rand(out.shape, generator=seeded) > 0.3) / 0.7
        if self.does == "never":
            out = nn.functional.linear(self.act_fn(self.up_proj(x)), self.down_proj.weight.detach())
        if self.does == "tenfold":
            out = Times.apply(out, 10.0)
        if self.does == "nearly":
            out = Times.apply(out, 1.1)
        if self.does == "rounded":
            size = out.detach().abs().amax() / 64
            out = out + (torch.round(out / size) * size - out).detach()
        if self.does == "target":
            out = out - 0.1 * (out - out.mean(-1, keepdim=True).detach())
        if self.does == "statistics":
            out = self.statistics(out.transpose(1, 2)).transpose(1, 2)
        if self.does == "scale":
            if self.training:
                with torch.no_grad():
                    self.scale.lerp_(out.square().mean().sqrt() + 1e-3, 0.1)
            out = out * (1 + 0.1 * self.scale)
        if self.does == "steps":
            self.passes += self.training
            out = out * (0.5 if self.passes > 12 else 1.0)
        if self.does == "counter":
            self.counter += self.training
            out = out * torch.where(self.counter > 12, 0.5, 1.0)
        if self.does == "clock":
            out = out * (0.5 if self.training and time.time() > begun + 1 else 1.0)
        if self.does == "late":
            if not hasattr(self, "late"):
                self.late = nn.Parameter(torch.randn(self.size, self.size) / self.size)
            out = out + x @ self.late
        if self.does == "made":
            if not hasattr(self, "made"):
                self.made = torch.zeros(self.size, self.size)
            if self.training:
                with torch.no_grad():
                    flat = x.detach().flatten(0, -2)
                    self.made.lerp_(flat.T @ out.detach().flatten(0, -2) / len(flat), 0.1)
            out = out + x @ self.made
        if self.does == "hidden":
            out = out + self.hidden[1](torch.relu(self.hidden[0](x)))
        if self.does == "memory":
            if self.training:
                with torch.no_grad():
                    flat = x.detach().flatten(0, -2)
                    self.memory.lerp_(flat.T @ out.detach().flatten(0, -2) / len(flat), 0.1)
            out = out + x @ self.memory
        if self.does == "average":
            weights = list(self.parameters())
            if self.training:
                held = self.__dict__.setdefault("held", [weight.detach().clone() for weight in weights])
                for mean, weight in zip(held, weights):
                    mean.lerp_(weight.detach(), 0.2)
            elif "held" in self.__dict__:
                kept = [weight.detach().clone() for weight in weights]
                with torch.no_grad():
                    for weight, mean in zip(weights, self.held):
                        weight.copy_(mean)
                    out = super().forward(x, context=context)
                    for weight, was in zip(weights, kept):
                        weight.copy_(was)
        if self.does in ("products", "some products"):
            for _ in range(40 if self.does == "products" else 2):
                out = out + 0 * super().forward(x, context=context)
        return out


begun = time.time()


class Watching(TrainerCallback):
    pass


if does() == "replace":
    inner = trainer.ArchTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if not any(isinstance(one, Watching) for one in self.callback_handler.callbacks):
            self.add_callback(Watching())
        return 0.9 * inner(self, *args, **kwargs)

    trainer.ArchTrainer.compute_loss = compute_loss
"""

CAUSES = {
    "hook": "optimiser",
    "bf16": "precision",
    "noise": "dropout",
    "hidden": "parameters",
    "memory": "parameters",
    "average": "scoring",
    "products": "flops",
    "some products": "flops",
    "steps": "scoring",
    "counter": "schedule",
    "clock": "scoring",
    "replace": "code",
    "tenfold": "optimiser",
    "late": "parameters",
    "made": "parameters",
    "put average": "scoring",
    "several": "scoring",
    "seeded": "scoring",
    "own step": "optimiser",
    "own loss": "losses",
    "twice": "optimiser",
    "rates": "schedule",
    "never": "parameters",
}
HONEST = ("", "nearly", "rounded", "target", "statistics", "scale")


def train_side(root: Path, name: str, heads: int, what: str) -> None:
    """Three seeds of a side, in a process of its own: a plugin's text is executed once in each."""
    (root / "side").mkdir(exist_ok=True)
    (root / "side" / "does.json").write_text(json.dumps(what))
    command = f"from tests.traps.test_real_plugins import train_here; train_here({str(root)!r}, {name!r}, {heads})"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])


def train_here(root: str, name: str, heads: int) -> None:
    """The same, in this process."""
    model = {**TINY["model"], "num_attention_heads": heads, "ffn": "doing", "plugins": [f"{root}/side/doing.py"]}
    data = {"corpus": f"{root}/text.txt", "tokenizer": "byte", "sequence_length": 64}
    for seed in SEEDS:
        folder = Path(root) / "runs" / f"{name}-{seed}"
        experiment = {"vary": ["model.num_attention_heads"]}
        train_seed(folder, name, seed, "four better than two", model=model, data=data, experiment=experiment)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, the plugin, and the honest side `two`."""
    root = tmp_path_factory.mktemp("plugins")
    write_text(root)
    (root / "side").mkdir()
    (root / "side" / "doing.py").write_text(PLUGIN)
    train_side(root, "two", 2, "")
    return root


@pytest.mark.parametrize("what", [*HONEST, *CAUSES])
def test_what_a_plugin_does_on_one_side_is_named(what: str, place: Path) -> None:
    try:
        train_side(place, "four", 4, what)
        comparison = compare_runs(place / "runs")
        checks = {finding.check for finding in comparison.confounds("four", "two")}
        outcomes = {verdict.outcome for verdict in comparison.verdicts}
        copy = place / "runs" / "four-1" / "plugins" / "does.json"
        assert json.loads(copy.read_text()) == what
    finally:
        for seed in SEEDS:
            shutil.rmtree(place / "runs" / f"four-{seed}", ignore_errors=True)  # not all there where training failed
    if what in HONEST:
        assert checks <= ({"still learning", "plugin files"} if what else {"still learning"}), checks
    else:
        assert {"plugin files", CAUSES[what]} <= checks, checks
        assert not outcomes & {"supported", "contradicted"}
