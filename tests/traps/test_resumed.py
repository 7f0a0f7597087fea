"""A run that goes on after a file that its plugin reads was changed: refused, or said to be another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.record import RunRecord, write_end
from hf_arch.training.run import run_training
from tests.traps.real_sets import recipe_of
from tests.traps.test_real import write_text

PLUGIN = """
from pathlib import Path

from hf_arch.core.registry import FFNS
from hf_arch.layers.contract import EMPTY_CONTEXT
from hf_arch.layers.ffns.ffn import MLP


@FFNS.register("scaled_by_file")
class Scaled(MLP):
    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.scale = float((Path(__file__).parent / "scale.txt").read_text())
        self.shift = float(Path("ELSEWHERE").read_text())

    def forward(self, x, context=EMPTY_CONTEXT):
        return super().forward(x, context=context) * self.scale + self.shift
"""


def go_on(root: Path, resume: bool) -> RunRecord:
    model = {**recipe_of()["model"], "ffn": "scaled_by_file", "plugins": [str(root / "side" / "mine.py")]}
    data = {"corpus": str(root / "text.txt"), "tokenizer": "byte", "sequence_length": 16}
    training = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    values = recipe_of(model=model, data=data, training=training)
    values["experiment"] = {"name": "t"}
    with separate_plugins():
        run_training(Recipe.from_dict(values), root / "run", resume=resume, quiet=True)
    return RunRecord.load(root / "run")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that was cut off after two."""
    root = tmp_path_factory.mktemp("resumed")
    write_text(root)
    (root / "side").mkdir()
    (root / "elsewhere").mkdir()
    (root / "side" / "scale.txt").write_text("1.0")
    (root / "elsewhere" / "shift.txt").write_text("0.0")
    (root / "side" / "mine.py").write_text(PLUGIN.replace("ELSEWHERE", str(root / "elsewhere" / "shift.txt")))
    record = go_on(root, resume=False)
    assert record.edited == [] and record.provenance["plugin_files"].keys() == {"scale.txt", "shift.txt"}
    shutil.rmtree(root / "run" / "checkpoints" / "checkpoint-4")
    write_end(root / "run", None, "interrupted", "cut off")
    return root


@pytest.fixture
def cut_off(begun: Path) -> Path:
    """The same, as it was."""
    if not (begun / "kept").is_dir():
        (begun / "run").rename(begun / "kept")
    shutil.rmtree(begun / "run", ignore_errors=True)
    shutil.copytree(begun / "kept", begun / "run")
    (begun / "side" / "scale.txt").write_text("1.0")
    (begun / "elsewhere" / "shift.txt").write_text("0.0")
    return begun


def test_nothing_changed(cut_off: Path) -> None:
    record = go_on(cut_off, resume=True)
    assert record.completed and not record.changes and record.edited == []


def test_a_copy_that_was_changed_is_refused(cut_off: Path) -> None:
    (cut_off / "run" / "plugins" / "scale.txt").write_text("2.0")
    before = (cut_off / "run" / "results.json").read_bytes()
    with pytest.raises(ConfigError, match=r"scale\.txt: not what the run was trained with .* restore the file"):
        go_on(cut_off, resume=True)
    assert (cut_off / "run" / "results.json").read_bytes() == before


def test_the_file_beside_the_plugin_that_was_changed_is_refused(cut_off: Path) -> None:
    """A process that has loaded the plugin from its own place reads what lies there."""
    (cut_off / "side" / "scale.txt").write_text("3.0")
    with pytest.raises(ConfigError, match=r"scale\.txt: not what the run was trained with"):
        go_on(cut_off, resume=True)


@pytest.mark.rest
def test_a_run_that_reads_its_copy_says_what_changed(cut_off: Path) -> None:
    """As the processes of a set do, which load the recipe in the folder of the run."""
    (cut_off / "side" / "scale.txt").write_text("3.0")
    run = cut_off / "run"
    command = ["train", str(run / "experiment_config.json"), "--output-dir", str(run), "--resume"]
    done = subprocess.run([sys.executable, "-m", "hf_arch", *command], capture_output=True, text=True, check=True)
    record = RunRecord.load(run)
    assert record.completed and not record.changes
    assert "is not what run was begun with; the copy in the run is used" in " ".join(done.stderr.split())


def test_a_file_from_elsewhere_is_a_change_of_the_run(cut_off: Path) -> None:
    (cut_off / "elsewhere" / "shift.txt").write_text("0.5")
    record = go_on(cut_off, resume=True)
    [change] = record.changes
    assert change["key"] == "plugin file shift.txt" and change["step"] == 2 and change["begun"] != change["now"]
    config = json.loads((cut_off / "run" / "experiment_config.json").read_text())
    assert config["run"]["changes"] == record.changes
