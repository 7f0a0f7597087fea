"""A run keeps its name and its folder through releases, and gets another where its numbers change."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hf_arch
from hf_arch.core.files import to_jsonable
from hf_arch.core.registry import ARCHITECTURES, FFNS, MIXERS
from hf_arch.data import DataOptions
from hf_arch.experiments.planning.folders import run_folder
from hf_arch.numerics import NUMERICS_VERSION, numerics_version
from hf_arch.recipe import identity, recipe
from hf_arch.recipe.evaluation import EvaluationOptions
from hf_arch.recipe.recipe import RUN_FACTS, ProbeOptions, Recipe
from hf_arch.runs.files import CONFIG_FILE
from hf_arch.training.arguments import DEFAULTS

RECORDED = Path(__file__).with_name("numerics_defaults.json")
VALUES: dict[str, Any] = {
    "model": {"architecture": "gla", "hidden_size": 32},
    "data": {"corpus": "text", "sequence_length": 16, "mixture": {"b": 2.0, "a": 1.0}},
    "training": {"max_steps": 3, "learning_rate": 1e-3, "logging_steps": 1},
}
PROBE: dict[str, Any] = {"model": {"architecture": "gla"}, "probe": {"task": "mqar"}, "training": {"max_steps": 3}}


def old_folder(results: Path, of: Recipe, name: str, *facts: str, hashed: dict[str, Any] | None = None) -> Path:
    """A run folder as 0.1.0.dev0 wrote it: its hash was over every value and the version of the package."""
    values = json.loads(json.dumps(to_jsonable(of.to_dict())))
    kept = {key: value for key, value in (hashed or values).items() if key != "experiment"}
    kept["training"] = {key: value for key, value in kept["training"].items() if not key.startswith("logging_")}
    kept["model"] = dict(kept["model"])
    plugins = [Path(path).read_bytes() for path in kept["model"].pop("plugins", [])]
    more = [*facts, *(hashlib.sha256(text).hexdigest() for text in plugins)]
    text = json.dumps([kept, "0.1.0.dev0", *more], sort_keys=True, default=str)
    written = hashlib.sha256(text.encode()).hexdigest()[:10]
    folder = results / f"{name}_{written}"
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps({**values, RUN_FACTS: {"hash": written, "hf_arch": "0.1.0.dev0"}}))
    return folder


def test_a_release_renames_no_run_and_a_change_of_numbers_renames_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Recipe.from_dict(VALUES).stable_hash("data")
    monkeypatch.setattr(hf_arch, "__version__", "9.9.9")
    assert Recipe.from_dict(VALUES).stable_hash("data") == reference
    assert identity.run_hash(VALUES, "data", code=f"numerics {NUMERICS_VERSION + 1}") != identity.run_hash(
        VALUES, "data"
    )


@pytest.mark.parametrize("values", [VALUES, PROBE])
def test_a_new_option_renames_no_run_that_leaves_it_out(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    section, cls = ("probe", ProbeOptions) if "probe" in values else ("evaluation", EvaluationOptions)

    @dataclass(frozen=True)
    class More(cls):  # type: ignore[valid-type,misc]
        added: int = 3

    reference = Recipe.from_dict(values).stable_hash()
    monkeypatch.setattr(recipe, cls.__name__, More)
    changed = {**values, section: {**values.get(section, {}), "added": 4}}
    assert "added" in Recipe.from_dict(values).to_dict()[section]
    assert Recipe.from_dict(values).stable_hash() == reference
    assert Recipe.from_dict(changed).stable_hash() != reference


@pytest.fixture
def numerics_of_0_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no number had changed since that release."""
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_OF_RELEASE["0.1.0.dev0"])


def test_the_folder_of_a_release_with_other_numbers_is_not_this_run(tmp_path: Path) -> None:
    wanted = Recipe.from_dict(VALUES)
    folder = old_folder(tmp_path, wanted, "gla", "data")
    assert identity.NUMERICS_OF_RELEASE["0.1.0.dev0"] != NUMERICS_VERSION
    assert run_folder(wanted, tmp_path, "gla", "data") != folder


@pytest.mark.usefixtures("numerics_of_0_1")
@pytest.mark.parametrize("values", [VALUES, PROBE])
@pytest.mark.parametrize("facts", [(), ("data",), ("data", "2 processes")])
def test_the_folder_of_an_earlier_release_is_found(
    values: dict[str, Any], facts: tuple[str, ...], tmp_path: Path
) -> None:
    wanted = Recipe.from_dict(values)
    assert run_folder(wanted, tmp_path, "gla", *facts) == tmp_path / f"gla_{wanted.stable_hash(*facts)}"
    folder = old_folder(tmp_path, wanted, "gla", *facts)
    assert run_folder(wanted, tmp_path, "gla", *facts) == folder
    for other, name, told in (
        (Recipe.from_dict({**values, "training": {"max_steps": 4}}), "gla", facts),
        (wanted, "gl", facts),
        (wanted, "gla", (*facts, "other data")),
    ):
        assert run_folder(other, tmp_path, name, *told) != folder


@pytest.mark.usefixtures("numerics_of_0_1")
def test_a_folder_of_an_earlier_release_that_was_resumed_since_is_still_found(tmp_path: Path) -> None:
    wanted = Recipe.from_dict(VALUES)
    folder = old_folder(tmp_path, wanted, "gla", "data")
    written = json.loads((folder / CONFIG_FILE).read_text())
    written[RUN_FACTS]["hash"] = wanted.stable_hash("data")
    (folder / CONFIG_FILE).write_text(json.dumps(written))
    assert run_folder(wanted, tmp_path, "gla", "data") == folder


@pytest.mark.usefixtures("numerics_of_0_1")
def test_a_plugin_that_changed_since_makes_another_run(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("a = 1\n")
    wanted = Recipe.from_dict({**VALUES, "model": {"architecture": "gla", "plugins": [str(plugin)]}})
    folder = old_folder(tmp_path / "results", wanted, "gla")
    assert run_folder(wanted, tmp_path / "results", "gla") == folder
    plugin.write_text("a = 2\n")
    assert run_folder(wanted, tmp_path / "results", "gla") != folder


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run": 3}', '{"model": 1, "training": {}, "run": {"hash": "x"}}'])
def test_a_folder_that_cannot_be_read_is_no_run_of_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / "gla_0123456789").mkdir()
    (tmp_path / "gla_0123456789" / CONFIG_FILE).write_text(text)
    wanted = Recipe.from_dict(VALUES)
    assert run_folder(wanted, tmp_path, "gla") == tmp_path / f"gla_{wanted.stable_hash()}"


def test_a_run_says_its_numerics_or_its_release_does() -> None:
    assert numerics_version({"numerics": 7, "hf_arch": "0.1.0.dev0"}) == 7
    assert numerics_version({"hf_arch": "0.1.0.dev0"}) == 1
    assert numerics_version({"hf_arch": "0.0.1"}) is None


def defaults() -> dict[str, Any]:
    """What a recipe gets without saying it; by name, as JSON."""
    found: dict[str, Any] = {"training": DEFAULTS}
    for section, cls in (("data", DataOptions), ("evaluation", EvaluationOptions)):
        found[section] = dataclasses.asdict(cls())
    for name in hf_arch.list_architectures():
        config = ARCHITECTURES.get(name).config()
        found[f"architecture {name}"] = {
            key: value for key, value in config.to_diff_dict().items() if key not in ("transformers_version", "dtype")
        }
    for kind in (MIXERS, FFNS):
        for name, entry in kind.items():
            if (cls := getattr(entry, "Options", None)) is not None and entry.__module__.startswith("hf_arch."):
                fields = [field for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING]
                found[f"{kind.kind} {name}"] = {field.name: field.default for field in fields}
    return json.loads(json.dumps(found, default=str, sort_keys=True))


def _kept(old: Any, new: Any) -> bool:
    """Whether all that was recorded is as it was; a component may have options that it had not."""
    if isinstance(old, dict) and isinstance(new, dict):
        return all(key in new and _kept(value, new[key]) for key, value in old.items())
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_kept, old, new))
    return bool(old == new)


def test_a_new_option_is_no_changed_default_and_another_value_is() -> None:
    assert _kept([{"type": "attention"}], [{"type": "attention", "sinks": False}])
    assert not _kept([{"type": "attention", "window": 4}], [{"type": "attention", "window": 8, "sinks": False}])
    assert not _kept({"a": 1}, {}) and not _kept([1], [1, 1])


def test_no_default_changes_without_another_numerics_version() -> None:
    """A default is in no hash: a run that relies on it would keep its name and get other numbers."""
    recorded = json.loads(RECORDED.read_text())
    assert recorded["numerics"] == NUMERICS_VERSION, (
        "record the defaults anew: python tests/experiments/test_identity.py"
    )
    now = defaults()
    changed = [
        f"{section}.{key}: {value!r} -> {now[section].get(key)!r}"
        for section, values in recorded["defaults"].items()
        if section in now
        for key, value in values.items()
        if key in now[section] and not _kept(value, now[section][key])
    ]
    assert not changed, f"raise NUMERICS_VERSION (CONTRIBUTING.md says how): {changed}"


if __name__ == "__main__":
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in defaults().items()]
    text = ",\n".join(lines)
    RECORDED.write_text(f'{{\n "numerics": {NUMERICS_VERSION},\n "defaults": {{\n{text}\n }}\n}}\n')
