"""Any import of transformers works before and after `import hf_arch`, and the architectures are known afterwards.

No model code of ours is imported by somebody else's import: every statement here is the first import of a process.
"""

from __future__ import annotations

import pkgutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fresh import Fresh

pytestmark = pytest.mark.timeout(900)  # each of some twenty processes imports transformers

STATEMENTS = [
    "from transformers import LlamaForCausalLM",
    "from transformers.modeling_layers import GradientCheckpointingLayer",
    "import transformers.models.auto.modeling_auto",
]
MORE_STATEMENTS = [
    "from transformers.models.qwen3_next import modeling_qwen3_next",
    "from transformers import AutoConfig",
    "from transformers import AutoModelForCausalLM, BertModel",
]
# Modules that the import of the Auto classes passes through: those that hold the tables, and before, inside and after.
PASSED = ["transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"]
MORE_PASSED = ["transformers.utils", "transformers.models.auto.auto_mappings"]
MODULES = ["models.decoder", "layers.ffns.moe"]
MORE_MODULES = ["models.architectures.llama", "checks"]
LIST = """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
assert "hfa_gla" in CONFIG_MAPPING.keys()
CONFIG_MAPPING.values(), CONFIG_MAPPING.items(), list(CONFIG_MAPPING)
"""

PROGRAM = """
import gc, sys
from importlib.abc import MetaPathFinder

gc.disable()  # the process ends before there is much to find
statement, hf_arch_first, loads_models = sys.argv[1], *map(int, sys.argv[2:])


class Intruder(MetaPathFinder):
    '''Executes a statement while another module imports `name`.'''

    def __init__(self, name, statement):
        self.name, self.statement = name, statement

    def find_spec(self, fullname, path, target=None):
        if fullname == self.name:
            sys.meta_path.remove(self)
            exec(self.statement, {"__name__": "intruder"})


if hf_arch_first:
    import hf_arch
exec(statement, {"__name__": "__main__", "Intruder": Intruder})
models = sorted(name for name in sys.modules if name.startswith(("hf_arch.models", "hf_arch.layers")))
assert not models or loads_models, f"imported by somebody else's import: {models}"
import hf_arch
from transformers import AutoConfig
config = AutoConfig.for_model("hfa_gla", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=11)
from transformers import AutoModelForCausalLM
assert type(AutoModelForCausalLM.from_config(config)).__name__ == "HfaGLAForCausalLM"
"""


class Failures:
    """What statements raise, each as the first import of a process."""

    def __init__(self, fresh: Fresh):
        self._fresh = fresh

    def __call__(self, statements: list[str], hf_arch_first: bool = True, loads_models: bool = False) -> dict[str, str]:
        found = {}
        for statement in statements:
            done = self._fresh(PROGRAM, statement, str(int(hf_arch_first)), str(int(loads_models)))
            if done.returncode:
                found[statement] = done.stderr
        return found


@pytest.fixture
def failures(fresh: Fresh) -> Failures:
    return Failures(fresh)


@pytest.mark.parametrize("hf_arch_first", [True, False])
def test_imports_work_in_every_order(failures: Failures, hf_arch_first: bool) -> None:
    assert failures(STATEMENTS if hf_arch_first else STATEMENTS[:2], hf_arch_first) == {}


@pytest.mark.slow
def test_more_imports_work(failures: Failures) -> None:
    assert failures(MORE_STATEMENTS) == {}


@pytest.mark.parametrize("passed", [PASSED, pytest.param(MORE_PASSED, marks=pytest.mark.slow)])
def test_hf_arch_may_be_imported_by_a_half_imported_transformers(failures: Failures, passed: list[str]) -> None:
    intruders = [f"import sys; sys.meta_path.insert(0, Intruder({name!r}, 'import hf_arch'))" for name in passed]
    orders = [f"{intruder}\nfrom transformers import AutoModelForCausalLM" for intruder in intruders]
    assert failures(orders, hf_arch_first=False) == {}


def test_listing_the_tables_inside_an_import_of_transformers_imports_no_model(failures: Failures) -> None:
    name = "transformers.modeling_layers"
    statement = (
        f"import sys; sys.meta_path.insert(0, Intruder({name!r}, {LIST!r}))\nfrom transformers import LlamaModel"
    )
    assert failures([statement]) == {}


@pytest.mark.parametrize("modules", [MODULES, pytest.param(MORE_MODULES, marks=pytest.mark.slow)])
def test_our_modules_may_be_the_first_import(failures: Failures, modules: list[str]) -> None:
    assert failures([f"import hf_arch.{module}" for module in modules], loads_models=True) == {}


def test_a_config_finds_every_component_whatever_was_imported_first(failures: Failures) -> None:
    statement = """
from hf_arch.models.configuration import ArchConfig
assert ArchConfig(mixer=["gla", "attention"], num_hidden_layers=2, ffn="moe").layer_types[1] == "full_attention"
from hf_arch.core.registry import ARCHITECTURES, NORMS
assert "llama" in ARCHITECTURES and "rmsnorm" in list(NORMS)
"""
    registries = "from hf_arch.core.registry import MIXERS\nassert MIXERS.get('gla') and len(list(MIXERS)) > 10"
    assert failures([statement, registries], loads_models=True) == {}


def test_the_tables_stay_right_when_listed_copied_found_and_reloaded(failures: Failures) -> None:
    statement = """
import copy, importlib, importlib.util, pickle, threading
from transformers.models.auto import configuration_auto
found = importlib.util.find_spec("transformers.models.auto.modeling_auto")
assert found.origin.endswith("modeling_auto.py") and "AutoModel" in found.loader.get_source(found.name)
from transformers.models.auto import modeling_auto
assert type(modeling_auto.__loader__).__module__.startswith("_frozen_importlib"), modeling_auto.__loader__
assert modeling_auto.__spec__.loader is modeling_auto.__loader__

names = []
threads = [
    threading.Thread(target=lambda: names.append(configuration_auto.CONFIG_MAPPING["hfa_llama"].__name__)),
    threading.Thread(target=lambda: names.append(configuration_auto.AutoConfig.for_model("hfa_llama").model_type)),
]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert sorted(names) == ["HfaLlamaConfig", "hfa_llama"], names

mapping = modeling_auto.AutoModelForCausalLM._model_mapping
config = configuration_auto.CONFIG_MAPPING["hfa_gla"]
for table in (configuration_auto.CONFIG_MAPPING, pickle.loads(pickle.dumps(configuration_auto.CONFIG_MAPPING))):
    assert table["hfa_gla"] is config and "hfa_gla" in table and "hfa_gal" not in table
    assert "hfa_gla" in table.keys() and config in list(table._extra_content.values())
assert config in mapping._extra_content and config in copy.copy(mapping._extra_content)

importlib.reload(configuration_auto), importlib.reload(modeling_auto)
assert configuration_auto.CONFIG_MAPPING["hfa_gla"] is config
assert modeling_auto.AutoModelForCausalLM._model_mapping[config].__name__ == "HfaGLAForCausalLM"
import hf_arch
importlib.reload(hf_arch)
assert configuration_auto.AutoConfig.for_model("hfa_gla").model_type == "hfa_gla"
"""
    assert failures([statement], loads_models=True) == {}


def test_listing_a_table_of_models_shows_ours(failures: Failures) -> None:
    statement = """
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
names = {config.__name__ for config in AutoModelForCausalLM._model_mapping._extra_content}
import hf_arch
promised = {key for key in CONFIG_MAPPING.keys() if key.startswith("hfa_")}
assert promised == {"hfa_" + name for name in hf_arch.list_architectures()}
assert len(names) == len(promised) == len(AutoModelForCausalLM._model_mapping._extra_content) > 20
"""
    assert failures([statement], loads_models=True) == {}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_model_folder_of_transformers_may_be_imported_first(failures: Failures) -> None:
    folder = Path(str(find_spec("transformers").origin)).parent / "models"
    modules = [
        f"transformers.models.{model.name}.modeling_{model.name}"
        for model in pkgutil.iter_modules([str(folder)])
        if (folder / model.name / f"modeling_{model.name}.py").exists()
    ]
    assert len(modules) > 300
    # Several to a process, each of which is the first in one; some need libraries that are not installed.
    groups = [modules[start : start + 8] for start in range(0, len(modules), 8)]
    one = "try:\n    import {0}\nexcept ImportError as error:\n    if 'partially' in str(error): raise"
    assert failures(["\n".join(one.format(module) for module in group) for group in groups]) == {}
