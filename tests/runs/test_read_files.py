"""What plugins read is kept with the run, and the corpus is known among it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_arch.checkpoints import plugin_copies
from hf_arch.core.errors import ConfigError
from hf_arch.core.plugins import separate_plugins
from hf_arch.experiments.planning.prepare import prepare_set
from hf_arch.recipe.recipe import Recipe
from hf_arch.runs.files import RESULTS_FILE
from hf_arch.runs.plugins import keep_read_files, read_files, text_files

PLUGIN = """
from pathlib import Path

from hf_arch.core.registry import FFNS
from hf_arch.layers.ffns.ffn import MLP

TABLE = (Path(__file__).parent / "tables" / "one.txt").read_text()
LEARNED = Path(TEXT).read_text()


@FFNS.register("reading")
class Reading(MLP):
    pass
"""


@pytest.mark.parametrize("corpus", ["text.txt", "other.txt"])
def test_files_are_kept_and_the_corpus_is_known(corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "side" / "tables").mkdir(parents=True)
    for name in ("text.txt", "other.txt", "side/tables/one.txt"):
        (tmp_path / name).write_text(name * 50)
    plugin = tmp_path / "side" / "reading.py"
    plugin.write_text(PLUGIN.replace("TEXT", repr(str(tmp_path / "text.txt"))))
    with separate_plugins():
        model = {"architecture": "llama", "ffn": "reading", "plugins": [str(plugin)]}
        recipe = Recipe.from_dict({"model": model, "data": {"corpus": str(tmp_path / corpus)}})
        files = read_files(recipe.plugins, recipe)
        assert set(files) == {"tables/one.txt", "text.txt"}
        assert text_files(files, recipe, recipe.plugins) == (["text.txt"] if corpus == "text.txt" else [])
        keep_read_files(files, tmp_path / "run")
    kept = {file.relative_to(tmp_path / "run").as_posix() for file in (tmp_path / "run").rglob("*.txt")}
    assert kept == {"plugins/tables/one.txt", "plugins/read/text.txt"}


def test_a_planned_run_has_the_files_beside_its_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process loads the copy of the plugin, which looks for them next to itself."""
    monkeypatch.setattr(plugin_copies, "LARGEST_KEPT", 100)
    (tmp_path / "tables").mkdir()
    table, large, plugin = tmp_path / "tables" / "one.txt", tmp_path / "large.txt", tmp_path / "reading.py"
    table.write_text("1")
    large.write_text("x" * 101)
    plugin.write_text(PLUGIN.replace("TEXT", repr(str(large))))
    with separate_plugins():
        recipe = Recipe.from_dict(
            {
                "model": {"architecture": "llama", "ffn": "reading", "plugins": [str(plugin)]},
                "probe": {"task": "parity", "setting": "cpu"},
                "training": {"max_steps": 1},
                "experiment": {"name": "t"},
            }
        )
        (run,) = prepare_set(recipe, tmp_path / "results").runs
        run.write_config()
        kept = run.folder / "plugins"
        assert (kept / "tables" / "one.txt").read_text() == "1"
        assert (kept / "large.txt").is_symlink() and (kept / "large.txt").read_text() == large.read_text()
        trained = {"provenance": {"plugin_files": {"tables/one.txt": "0" * 64}}}
        (run.folder / RESULTS_FILE).write_text(json.dumps(trained))
        with pytest.raises(
            ConfigError, match=r"was trained with another tables/one\.txt \(sha256 00000000, now 6b86b273"
        ):
            prepare_set(recipe, tmp_path / "results")
        (kept / "tables" / "one.txt").write_text("2")
        with pytest.raises(ConfigError, match="not what the run is to be trained with; name another folder"):
            run.write_config()
