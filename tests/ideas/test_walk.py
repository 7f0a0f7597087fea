"""What `hf-arch new` writes of every kind, walked through every command that takes a recipe, a run or a model.

All kinds together in the fast tests, which train once in this process; each kind alone, and what needs other processes
(a set, a sweep of rates, a push to a server on loopback), in the slow ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_arch.cli import app
from hf_arch.cli.new import KINDS, new_files
from hf_arch.core.plugins import separate_plugins
from hf_arch.evaluation.loading import load_causal_lm
from tests.hub.server import HubServer
from tests.training.tiny import recipe_values, write_text

ROOT = Path(__file__).parents[2]
ARCHITECTURE = """
from hf_arch.models.architectures.declare import architecture
from hf_arch.models.configuration import ArchConfig, Component


@architecture("walk_architecture", summary="a gated linear attention without positions", paper="none")
class HfaWalkArchitectureConfig(ArchConfig):
    mixer: Component = "gla"
    position: str = "none"
"""
USES: dict[str, dict[str, dict[str, Any]]] = {
    "mixer": {"model": {"mixer": ["walk_mixer", "attention"]}},
    "ffn": {"model": {"ffn": "walk_ffn"}},
    "norm": {"model": {"norm": "walk_norm"}},
    "position": {"model": {"position": "walk_position"}},
    "stream": {"model": {"stream": "walk_stream"}},
    "site": {"model": {"sites": ["walk_site"]}},
    "embedding": {"model": {"embeddings": ["walk_embedding"]}},
    "depth": {"model": {"depth": "walk_depth"}},
    "loss": {"model": {"losses": ["walk_loss"]}},
    "optimizer": {"training": {"optim": "walk_optimizer"}},
    "schedule": {"training": {"lr_scheduler_type": "walk_schedule"}},
    "init": {"model": {"init": "walk_init"}},
    "metric": {"evaluation": {"metrics": ["walk_metric"]}},
    "column": {"experiment": {"columns": ["walk_column"]}},
    "architecture": {"model": {"architecture": "walk_architecture"}},
}
"""Kind -> what names it in a recipe."""
MODEL_KINDS = ("mixer", "ffn", "norm", "position", "stream", "site", "embedding", "depth", "loss", "init")
NOT_IN_THE_MODEL = ("optimizer", "schedule", "metric", "column")
READING = (
    ("info", "RUN"),
    ("info", "RECIPE"),
    ("generate", "RUN", "--prompt", "the ", "--max-new-tokens", "2"),
    ("eval", "RUN", "--tasks", "perplexity"),
    ("plan", "RECIPE"),
    ("run", "RECIPE", "--dry-run"),
    ("compare", "FOLDER"),
    ("report", "FOLDER"),
    ("bench", "RUN", "--seq-len", "8", "--batch-size", "1", "--repeats", "1"),
    ("export", "RUN", "--format", "hub", "--output", "exported"),
)
"""Commands that read a run or a recipe, each with what it takes."""


def test_every_kind_is_walked() -> None:
    assert {*USES, "probe"} == {*KINDS, "architecture"}
    assert {*MODEL_KINDS, *NOT_IN_THE_MODEL, "architecture"} == set(USES)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with separate_plugins(), pytest.raises(SystemExit) as end:
        app(list(words))
    printed = capsys.readouterr()
    assert end.value.code == 0, f"{words}: {printed.err[-2000:]}"
    return printed.out


def write_plugins(folder: Path, kinds: tuple[str, ...]) -> list[str]:
    files = []
    for kind in kinds:
        text = ARCHITECTURE if kind == "architecture" else new_files(kind, f"walk_{kind}")[f"walk_{kind}.py"]
        (folder / f"walk_{kind}.py").write_text(text)
        files.append(str(folder / f"walk_{kind}.py"))
    return files


def write_walk(folder: Path, kinds: tuple[str, ...], **experiment: Any) -> Path:
    """A recipe in `folder` that uses a plugin file of each of these kinds."""
    values = recipe_values(write_text(folder), training={"max_steps": 2, "eval_steps": 2, "save_steps": 2})
    values["model"] |= {"architecture": "mixed", "mixer": "attention", "plugins": write_plugins(folder, kinds)}
    values["evaluation"] |= {"speed": False, "new_tokens": 1}
    values["experiment"] |= {"name": "walk", **experiment}
    if "architecture" in kinds:
        del values["model"]["mixer"]
    for kind in kinds:
        for section, change in USES[kind].items():
            values[section] |= change
    (folder / "walk.yaml").write_text(yaml.safe_dump(values))
    return folder / "walk.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, recipe, run): a run that uses every kind at once, trained in this process."""
    folder = tmp_path_factory.mktemp("walk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(folder / "cache"))
        recipe = write_walk(folder, (*MODEL_KINDS, *NOT_IN_THE_MODEL))
        with separate_plugins(), pytest.raises(SystemExit) as end:
            app(["train", str(recipe), "--output-dir", str(folder / "runs" / "run")])
        assert end.value.code == 0
        yield folder, recipe, folder / "runs" / "run"


def filled(command: tuple[str, ...], folder: Path, recipe: Path, run: Path) -> list[str]:
    places = {"RUN": run, "RECIPE": recipe, "FOLDER": run.parent}
    return [str(places.get(word, word)) for word in command]


@pytest.mark.rest
def test_a_run_keeps_all_that_it_uses(trained: Any) -> None:
    _, _, run = trained
    results = json.loads((run / "results.json").read_text())
    assert results["status"] == "completed" and "walk_metric" in results["plugin_metrics"]
    kept = {path.stem for path in (run / "plugins").glob("*.py")}
    assert kept == {f"walk_{kind}" for kind in (*MODEL_KINDS, *NOT_IN_THE_MODEL)}


@pytest.mark.parametrize("command", READING, ids=lambda command: f"{command[0]}-{command[1].lower()}")
def test_a_command_takes_all_kinds_together(
    command: tuple[str, ...], trained: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained[0])
    out = said(capsys, *filled(command, *trained))
    assert out.strip() or command[0] in ("report", "export")
    if command == ("info", "RUN"):
        assert "walk" in out.lower()


@pytest.mark.slow
@pytest.mark.parametrize("kind", USES)
def test_a_kind_alone_goes_through_every_command(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    recipe, run = write_walk(tmp_path, (kind,)), tmp_path / "runs" / "run"
    said(capsys, "check", str(tmp_path / f"walk_{kind}.py"))
    said(capsys, "train", str(recipe), "--output-dir", str(run))
    for command in READING:
        said(capsys, *filled(command, tmp_path, recipe, run))
    assert f"walk_{kind}.py" in os.listdir(run / "plugins")
    copies = {path.name for path in Path("exported").glob("*walk_*")}
    assert bool(copies) == (kind not in NOT_IN_THE_MODEL), copies


@pytest.mark.slow
def test_a_set_and_a_sweep_take_all_kinds_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    runs = {"mine": {}, "plain": {"model": {"mixer": "attention"}}}
    asked = {"runs": runs, "seeds": 2, "hypothesis": "mine better than plain.", "learning_rates": [0.002, 0.005]}
    recipe = write_walk(tmp_path, (*MODEL_KINDS, *NOT_IN_THE_MODEL), **asked)
    said(capsys, "run", str(recipe), "--results-dir", "results")
    suite = Path("results")
    assert len([*suite.glob("*/results.json")]) == 4  # two runs, two seeds
    assert len([*suite.glob("learning_rates/*/results.json")]) >= 4  # two runs at two rates, or more at an end
    document = json.loads(said(capsys, "compare", str(suite), "--json"))
    assert {row["name"] for row in document["groups"]} == {"mine", "plain"}
    said(capsys, "report", str(suite))


@pytest.mark.slow
def test_a_probe_goes_through_the_commands_that_take_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = (
        "mixer",
        "ffn",
        "norm",
        "position",
        "stream",
        "site",
        "embedding",
        "depth",
        "init",
        "optimizer",
        "schedule",
    )
    values: dict[str, Any] = {
        "model": {"architecture": "mixed", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "probe": {"task": "walk_probe", "setting": "cpu", "options": {"sequence_length": 16, "distance": 2}},
        "training": {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "per_device_train_batch_size": 8},
        "experiment": {"name": "walk"},
    }
    values["model"]["plugins"] = write_plugins(tmp_path, (*kinds, "probe"))
    for kind in kinds:
        for section, change in USES[kind].items():
            values[section] |= change
    Path("walk.yaml").write_text(yaml.safe_dump(values))
    said(capsys, "check", "walk_probe.py")
    said(capsys, "train", "walk.yaml", "--output-dir", "runs/run")
    for command in (("info", "runs/run"), ("run", "walk.yaml", "--dry-run"), ("compare", "runs"), ("report", "runs")):
        said(capsys, *command)


@pytest.mark.slow
def test_a_push_takes_the_code_along(trained: Any, tmp_path: Path) -> None:
    """The pushed model loads in a process that has neither this package nor the plugins."""
    folder, _, run = trained
    with HubServer({"hf_alice": "alice"}) as server:
        environment = {**os.environ, **server.environment("hf_alice", tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
        words = [sys.executable, "-m", "hf_arch", "push", str(run), "alice/walk"]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        code = (
            "import sys; sys.modules['hf_arch'] = None\nimport torch\nfrom transformers import AutoModelForCausalLM\n"
            "model = AutoModelForCausalLM.from_pretrained('alice/walk', trust_remote_code=True).eval()\n"
            "with torch.no_grad():\n    print(model(torch.arange(6)[None]).logits.sum().item())"
        )
        pulled = subprocess.run(
            [sys.executable, "-c", code], env={**environment, "PYTHONPATH": ""}, capture_output=True, text=True
        )
        assert pulled.returncode == 0, pulled.stderr[-2000:]
    with separate_plugins(), torch.no_grad():
        model = load_causal_lm(run / "model").eval()
        expected = model(torch.arange(6)[None]).logits.sum().item()
    assert float(pulled.stdout.split()[-1]) == pytest.approx(expected, abs=1e-4)
