"""A run keeps the plugins that it uses, is loaded with these, and depends on no others."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig
from typer.testing import CliRunner

import hf_arch
from hf_arch.checkpoints.plugin_copies import choose_plugin_code
from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import load_plugin, separate_plugins
from hf_arch.core.registry import NORMS
from hf_arch.evaluation.loading import load_model
from hf_arch.experiments.planning.prepare import prepare_set
from hf_arch.hub.bundle import bundle
from hf_arch.recipe.recipe import Recipe, load_recipe
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

PLUGIN = """
from torch import nn
from hf_arch.core.registry import NORMS
from scaling_of_mine import scaled


@NORMS.register("norm_of_mine")
class Norm(nn.RMSNorm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)

    def forward(self, x):
        return scaled(super().forward(x))
"""
HELPER = "def scaled(x):\n    return {factor} * x\n"
OTHER = """
from torch import nn
from hf_arch.core.registry import NORMS


@NORMS.register("another_norm")
class Other(nn.RMSNorm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)  # {comment}
"""
QUICK = {"speed": False, "new_tokens": 1, "sequences": 4, "final_sequences": 4}


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    with separate_plugins():
        yield
    choose_plugin_code("run")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the king is dead, long live the king. " * 400)
    return file


def write(folder: Path, factor: float = 1.0, comment: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "scaling_of_mine.py").write_text(HELPER.format(factor=factor))
    (folder / "other.py").write_text(OTHER.format(comment=comment))


def recipe(folder: Path, text: Path, **changes: Any) -> Path:
    steps = {"max_steps": 2, "save_steps": 1, "save_total_limit": None}
    values = recipe_values(text, evaluation=QUICK, training=steps)
    values["model"] |= {"plugins": ["mine.py", "other.py"], "norm": "norm_of_mine"}
    values["experiment"] = {"name": "kept", **changes}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return file


def logits(run: Path) -> torch.Tensor:
    model, _tokenizer = load_model(run, device=torch.device("cpu"))
    with torch.no_grad():
        return model(torch.arange(3, 12)[None]).logits


@pytest.mark.rest
def test_a_run_is_what_it_was_trained_with(
    text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    write(source)
    file = recipe(source, text)
    monkeypatch.chdir("/")
    results = run_training(load_recipe(file), run, quiet=True)
    assert sorted(results["provenance"]["plugins"]) == ["mine.py", "scaling_of_mine.py"]  # other.py is not used
    config = json.loads((run / "experiment_config.json").read_text())
    assert config["model"]["plugins"] == ["plugins/mine.py"]
    assert sorted(path.name for path in (run / "plugins").iterdir()) == ["mine.py", "scaling_of_mine.py"]
    with separate_plugins():
        expected = logits(run)

    write(source, factor=3.0)
    with separate_plugins(), caplog.at_level(logging.WARNING, "hf_arch"):
        assert torch.equal(logits(run), expected)
        told = [line for line in caplog.messages if "mine.py" in line]
        assert len(told) == 1 and "the copy is used (--plugin-code current takes the file)" in told[0]
    with separate_plugins():
        choose_plugin_code("current")
        assert not torch.allclose(logits(run), expected)
        choose_plugin_code("run")
    with separate_plugins():  # resuming goes on with the copy, under the recipe that names the changed file
        again = run_training(load_recipe(file, run=run), run, resume=True, quiet=True)
        assert again["provenance"]["plugins"] == results["provenance"]["plugins"]
    with separate_plugins(), pytest.raises(ConfigError, match=r"model\.plugins: .*scaling_of_mine\.py is "):
        choose_plugin_code("current")
        run_training(load_recipe(file, run=run), run, resume=True, quiet=True)
    choose_plugin_code("run")

    shutil.move(run, tmp_path / "elsewhere")
    shutil.rmtree(source)
    moved = tmp_path / "elsewhere"
    with separate_plugins():
        assert torch.equal(logits(moved), expected)
        assert torch.equal(logits(moved / "checkpoints" / "checkpoint-2"), expected)
        assert load_recipe(moved / "experiment_config.json").model["plugins"] == [str(moved / "plugins" / "mine.py")]
        files = bundle(load_model(moved, device=torch.device("cpu"))[0].config).files
        assert "from .plugin_scaling_of_mine import scaled" in files["plugin_mine.py"]
        assert files["plugin_scaling_of_mine.py"].endswith(HELPER.format(factor=1.0))
    (moved / "plugins" / "scaling_of_mine.py").write_text(HELPER.format(factor=2.0))
    with (
        separate_plugins(),
        pytest.raises(ConfigError, match=r"scaling_of_mine\.py: not what the run was trained with"),
    ):
        logits(moved)


def test_only_what_uses_a_plugin_depends_on_it(text: Path, tmp_path: Path) -> None:
    runs = {"with": {}, "without": {"model.norm": "rmsnorm"}}

    def folders() -> dict[str, str]:
        with separate_plugins():
            planned = prepare_set(load_recipe(recipe(tmp_path, text, runs=runs)), tmp_path / "results")
            return {run.name: run.folder.name for run in planned.runs}

    write(tmp_path)
    first = folders()
    write(tmp_path, comment="edited")  # the plugin that neither of them uses
    assert folders() == first
    write(tmp_path, factor=3.0)
    second = folders()
    assert second["without"] == first["without"] and second["with"] != first["with"]


def test_a_plugin_of_the_environment_belongs_to_the_run(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setenv("HF_ARCH_PLUGINS", str(tmp_path / "mine.py"))
    values = recipe_values(text, evaluation=QUICK, training={"max_steps": 1})
    values["model"]["norm"] = "norm_of_mine"
    assert "norm_of_mine" in NORMS and "norm_of_mine" in list(NORMS)
    run_training(Recipe.from_dict(values), tmp_path / "run", quiet=True)
    with separate_plugins():
        expected = logits(tmp_path / "run")
    monkeypatch.delenv("HF_ARCH_PLUGINS")
    with separate_plugins():
        NORMS.restore(({}, {}))
        assert torch.equal(logits(tmp_path / "run"), expected)
    write(tmp_path, factor=3.0)
    monkeypatch.setenv("HF_ARCH_PLUGINS", str(tmp_path / "mine.py"))
    with separate_plugins():
        assert torch.equal(logits(tmp_path / "run"), expected)
        assert "norm_of_mine" in list(NORMS)  # which looks at the environment again, and leaves the run's version


def test_two_versions_in_one_process(tmp_path: Path) -> None:
    for name, factor in (("first", 1.0), ("second", 2.0)):
        write(tmp_path / name, factor)
    load_plugin(tmp_path / "first" / "mine.py")
    load_plugin(tmp_path / "second" / "mine.py")  # nothing was made of the first
    x = torch.ones(2, 4)
    norm = NORMS["norm_of_mine"](4, 1e-6)
    assert torch.allclose(norm(x), 2 * x, atol=1e-3)
    with pytest.raises(ConfigError, match=r"plugin mine\.py: .*first.* are two versions of it"):
        load_plugin(tmp_path / "first" / "mine.py")
    with separate_plugins():
        load_plugin(tmp_path / "first" / "mine.py")
        assert torch.allclose(NORMS["norm_of_mine"](4, 1e-6)(x), x, atol=1e-3)
    assert torch.allclose(NORMS["norm_of_mine"](4, 1e-6)(x), 2 * x, atol=1e-3)
    shutil.copy(tmp_path / "second" / "other.py", tmp_path / "renamed.py")
    load_plugin(tmp_path / "second" / "other.py")
    with pytest.raises(ConfigError, match=r"'another_norm' is registered already by plugin other\.py"):
        load_plugin(tmp_path / "renamed.py")


def test_a_file_that_was_edited_stays_as_loaded_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    plugin = load_plugin(tmp_path / "mine.py")
    entry = NORMS["norm_of_mine"]
    write(tmp_path, factor=5.0)
    with caplog.at_level(logging.WARNING, "hf_arch"):
        assert load_plugin(tmp_path / "mine.py") is plugin and NORMS["norm_of_mine"] is entry
    assert "the file was changed after this process loaded it" in caplog.text
    assert load_plugin(tmp_path / "mine.py", reload=True) is not plugin
    assert NORMS["norm_of_mine"] is not entry


def test_a_folder_beside_a_plugin_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.py").write_text("x = 1\n")
    (tmp_path / "mine.py").write_text("from parts.one import x\n")
    with pytest.raises(ConfigError, match=r"imports the folder parts/ next to it"):
        load_plugin(tmp_path / "mine.py")


WHOLE = """
from hf_arch.core.registry import PROBES
from hf_arch.data.probes.probe import Probe
from hf_arch.models.architectures.declare import architecture
from hf_arch.models.configuration import ArchConfig

PROBES.register("parity_of_mine")(Probe("parity_of_mine", "?", PROBES["parity"].generate, PROBES["parity"].settings,
                                        PROBES["parity"].cpu))


@architecture("llama_of_mine", summary="llama", paper="none")
class HfaLlamaOfMineConfig(ArchConfig):
    pass
"""


@pytest.mark.rest
def test_every_command_knows_what_a_plugin_registers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "whole.py"
    file.write_text(WHOLE)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    named = f"plugins=['{file}']"
    sizes = ("hidden_size=32", "num_hidden_layers=1", "num_attention_heads=2", "vocab_size=64")
    with separate_plugins():
        assert "llama_of_mine" in call("info", "llama_of_mine", named, *sizes)
    monkeypatch.setenv("HF_ARCH_PLUGINS", str(file))
    with separate_plugins():
        assert "llama_of_mine" in call("list")
        assert "llama_of_mine" in call("bench", "llama_of_mine", *sizes, "--seq-len", "8", "--repeats", "1")
    monkeypatch.delenv("HF_ARCH_PLUGINS")
    arguments = ("probe", "llama_of_mine", f"model.{named}", "training.max_steps=1", "--task", "parity_of_mine")
    with separate_plugins():
        call(*arguments, "--width", "16", "--layers", "1", "--results-dir", "results")
    (run,) = (tmp_path / "results" / "parity_of_mine").glob("llama_of_mine_*")
    assert list(json.loads((run / "results.json").read_text())["provenance"]["plugins"]) == ["whole.py"]
    assert (run / "plugins" / "whole.py").read_text() == WHOLE


def test_a_declared_architecture_is_its_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code is in the hash and the copy of a run that names it, also where only the environment names the file; the
    Auto classes make the version in use; and no name of the package's can be taken."""
    declared = WHOLE.partition("PROBES.register")[0] + WHOLE[WHOLE.index("@architecture") :]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, width in ((first, 48), (second, 80)):
        folder.mkdir()
        (folder / "whole.py").write_text(declared.replace("    pass", f"    hidden_size: int = {width}"))
    hashes = []
    for folder in (first, second):
        monkeypatch.setenv("HF_ARCH_PLUGINS", str(folder / "whole.py"))
        with separate_plugins():
            recipe = Recipe.from_dict({"model": {"architecture": "llama_of_mine"}})
            hashes.append(recipe.stable_hash())
            assert [plugin.source.path for plugin in recipe.plugins] == [(folder / "whole.py").resolve()]
    assert hashes[0] != hashes[1]
    monkeypatch.delenv("HF_ARCH_PLUGINS")
    with separate_plugins():
        load_plugin(first / "whole.py")
        with separate_plugins():
            load_plugin(second / "whole.py", reload=True)
            assert AutoConfig.for_model("hfa_llama_of_mine").hidden_size == 80
        assert AutoConfig.for_model("hfa_llama_of_mine").hidden_size == 48
    (tmp_path / "taken.py").write_text(declared.replace("llama_of_mine", "llama"))
    with pytest.raises(ConfigError, match="'llama' is registered already"):
        load_plugin(tmp_path / "taken.py")
    assert "llama_of_mine" not in hf_arch.list_architectures()
