"""A plugin written against the paths of version 0.1 works, says what has moved, and travels with a bundle."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import MOVED, current_module, load_plugins
from hf_arch.core.registry import load_plugin
from hf_arch.hub.bundle import bundle

OLD = """
from typing import Any, ClassVar

from torch import Tensor

from hf_arch.components.norms import ArchRMSNorm
from hf_arch.mixers.base import MixerCost, RecurrentMixer
from hf_arch.modeling.layout import SequenceLayout
from hf_arch.options import Options, options
from hf_arch.registry import MIXERS


@options
class EchoOptions(Options):
    scale: float = 1.0


@MIXERS.register("echo_of_0_1")
class Echo(RecurrentMixer):
    Options = EchoOptions
    label: ClassVar[str] = "Echo"

    def mix(self, x: Tensor, layout: SequenceLayout, state: Any, **context: Any) -> Tensor:
        return x * self.options.scale

    def cost(self, seq_len: int) -> MixerCost:
        return MixerCost()
"""


def test_old_paths_work_and_are_named(tmp_path, caplog):
    (tmp_path / "old_paths.py").write_text(OLD)
    with caplog.at_level(logging.WARNING, "hf_arch"):
        load_plugin(tmp_path / "old_paths.py")
    assert "hf_arch.mixers.base is called hf_arch.layers.mixers.base now" in caplog.text
    config = hf_arch.tiny_config("mixed", mixer="echo_of_0_1", position="none")
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model(torch.arange(5)[None]).logits.isfinite().all()
    files = bundle(config).files
    text = files["plugin_old_paths.py"]
    assert "from .layers_mixers_base import MixerCost, RecurrentMixer" in text and "layers_mixers_base.py" in files


@pytest.mark.parametrize("old", MOVED)
def test_what_moved_is_where_the_table_says(old: str):
    importlib.import_module(current_module(old))
    with pytest.raises(ModuleNotFoundError):
        importlib.util.find_spec(f"{old}.nothing_here") if old.count(".") > 1 else importlib.import_module(f"{old}_")


def test_a_file_that_registers_nothing_is_named_with_what_it_could_register(tmp_path, caplog):
    (tmp_path / "undecorated.py").write_text("class Idea: pass\n")
    (tmp_path / "decorated.py").write_text(OLD.replace("echo_of_0_1", "echo_decorated"))
    with caplog.at_level(logging.WARNING, "hf_arch"):
        for _ in range(2):
            load_plugins([tmp_path / "undecorated.py", tmp_path / "decorated.py"])
    told = [record.getMessage() for record in caplog.records if "registers nothing" in record.getMessage()]
    assert len(told) == 1 and "plugin undecorated.py" in told[0] and "mixer" in told[0] and "probe" in told[0]


def test_a_file_that_is_no_python_is_refused(tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"plugin: .*broken\.py: .*SyntaxError"):
        load_plugin(tmp_path / "broken.py")


FIRST = """
from hf_arch.core.plugins import separate_plugins
from hf_arch.core.registry import FFNS, load_plugin

with separate_plugins():
    load_plugin("mine.py")
    print(FFNS.owner("glu"), FFNS.owner("mine_of_a_test").name)
print("glu" in list(FFNS), "mine_of_a_test" in list(FFNS))
"""


@pytest.mark.rest
def test_a_part_of_the_package_that_a_plugin_imports_first_is_not_the_plugins(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from hf_arch.core.registry import FFNS\n"
        "from hf_arch.layers.ffns.ffn import MLP\n\n\n"
        "def enter():\n    @FFNS.register('mine_of_a_test')\n    class Mine(MLP):\n        pass\n\n\n"
        "enter()\n"
    )
    command = [sys.executable, "-c", FIRST]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_arch.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.split() == ["None", "mine.py", "True", "False"]
