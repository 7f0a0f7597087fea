"""A look for one name imports what holds it, and no more."""

from __future__ import annotations

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.core.registry import ARCHITECTURES, DEPTHS, FFNS, MIXERS, NORMS
from tests.fresh import Fresh


def test_every_entry_of_the_package_is_in_the_module_that_a_look_imports(fresh: Fresh) -> None:
    code = """
import sys
from hf_arch.core import registry

def module_of_frame():
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" or frame.f_globals["__name__"] == "hf_arch.core.registry":
        frame = frame.f_back
    return frame.f_globals["__name__"]

entered, plain = [], registry.Registry.enter
def enter(self, name, entry, plugin=None):
    entered.append((self, name, module_of_frame()))
    return plain(self, name, entry, plugin)
registry.Registry.enter = enter
registry.import_all_entries()
for held, name, module in entered:
    looked = f"hf_arch.{held.home}", f"hf_arch.{held.home}.{held.elsewhere.get(name, name)}"
    if held.home is not None and module not in looked:
        print(f"{held.kind} {name}: in {module}, a look imports {looked}")
print(len(entered), sorted({held.kind for held, _, _ in entered if held.home is None}))
"""
    done = fresh(code)
    *wrong, counts = done.stdout.splitlines()
    assert wrong == [], done.stderr
    number, without_home = counts.split(" ", 1)
    assert int(number) > 150 and without_home == "['feature_map']", "give the registry its home"


def test_a_look_imports_what_it_needs(fresh: Fresh) -> None:
    code = """
import sys
import hf_arch
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("hfa_gla", hidden_size=32, num_hidden_layers=1, vocab_size=64)
AutoModelForCausalLM.from_config(config)
hf_arch.cost(config, 16)
folders = ("hf_arch.layers.mixers.", "hf_arch.models.architectures.")
imported = [name for name in sys.modules if name.startswith(folders)]
print(*sorted(name.rpartition(".")[2] for name in imported))
"""
    done = fresh(code)
    assert done.stdout.split() == ["base", "base", "declare", "gla", "gla", "linear_heads"], done.stderr


@pytest.mark.parametrize("registry", [MIXERS, ARCHITECTURES, FFNS, DEPTHS, NORMS], ids=lambda registry: registry.kind)
def test_modules_that_hold_no_entry_are_no_names(registry) -> None:
    for name in ("base", "declare", "loops", "..errors", "no such", ""):
        with pytest.raises(ConfigError) as caught:
            registry.get(name, "model.part")
        assert (caught.value.field, caught.value.value) == ("model.part", name)


def test_an_error_names_all_that_is_allowed(fresh: Fresh) -> None:
    code = """
import hf_arch.core.registry as registry
try:
    registry.MIXERS.get("retnett", "model.mixer")
except ValueError as error:
    print(error)
    print(list(error.allowed))
"""
    line, allowed = fresh(code).stdout.splitlines()
    # not of this process, where tests have registered their own
    everything = fresh("from hf_arch.core.registry import MIXERS\nprint(list(MIXERS))").stdout
    assert "'retnet'" in line and allowed == everything.strip()


def test_a_plugin_cannot_take_a_name_whose_module_nobody_has_imported(fresh: Fresh, tmp_path) -> None:
    for number, (registry, name) in enumerate([("MIXERS", "mesa_net"), ("MIXERS", "kv_builder"), ("NORMS", "rmsnorm")]):
        file = tmp_path / f"taken_{number}.py"
        file.write_text(
            f"from hf_arch.core.registry import {registry}\n{registry}.register({name!r})(type('X', (), {{}}))\n"
        )
        done = fresh(f"from hf_arch.core.plugins import load_plugin\nload_plugin({str(file)!r})")
        assert f"{name!r} is registered already by hf_arch.layers." in done.stderr


def test_what_a_plugin_changes_in_a_module_that_it_is_the_first_to_import_is_named(fresh: Fresh, tmp_path) -> None:
    """And nothing else: what our own modules do at their import is no change."""
    file = tmp_path / "changes.py"
    file.write_text("from hf_arch.layers.mixers import gla\ngla.GatedLinearAttention.mix = gla.repeat_kv_heads\n")
    code = f"""
from hf_arch.core.plugin_patches import remember, replaced
from hf_arch.core.plugins import load_plugin
from hf_arch.core.registry import import_all_entries
remember()
load_plugin({str(file)!r})
import_all_entries()
import hf_arch.training.run
print(*replaced())
"""
    done = fresh(code)
    assert done.stdout == "hf_arch.layers.mixers.gla.GatedLinearAttention.mix\n", done.stderr
