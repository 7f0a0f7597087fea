"""Ideas beyond the mixer, each as one plugin file of less than 60 lines: every command takes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import check_model
from hf_arch.cli import app
from hf_arch.core.registry import load_plugin
from hf_arch.hub.repository import stage_model
from tests.fresh import Fresh
from tests.training.tiny import recipe_values, write_text

IDEAS = Path(__file__).with_name("ideas")
FIELDS: dict[str, Any] = {
    "x0_scalars": {"stream": "idea_x0_scalars"},
    "unet_skips": {"stream": "idea_unet_skips"},
    "value_embedding": {"embeddings": ["idea_value_embedding"]},
    "ngram": {"embeddings": ["idea_ngram"]},
    "loop": {"depth": "idea_loop"},
    "shared_layers": {"depth": "idea_shared_layers"},
    "multi_token": {"losses": ["idea_multi_token"]},
    "canon": {"sites": ["idea_canon"]},
}
FIVE = ("x0_scalars", "value_embedding", "ngram", "loop", "multi_token", "canon")

STRANGER = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for folder in map(Path, sys.argv[1:]):
    said = load_file(folder / "expected.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        assert torch.equal(model(said["tokens"]).logits, said["logits"])
    assert torch.equal(model.generate(said["tokens"], max_new_tokens=6, do_sample=False), said["generated"])
assert not any(name.split(".")[0] == "hf_arch" for name in sys.modules)
"""


def test_the_files_are_short():
    assert {path.stem for path in IDEAS.glob("*.py")} == set(FIELDS)
    assert all(len(path.read_text().splitlines()) < 60 for path in IDEAS.glob("*.py"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", FIELDS)
def test_an_idea_holds_every_invariant(name: str):
    load_plugin(IDEAS / f"{name}.py")
    config = hf_arch.tiny_config("mixed", mixer=["gla", "attention"], **FIELDS[name])
    assert not [result for result in check_model(config) if not result.passed]
    label, table = hf_arch.describe(config)
    assert "-My" in label and f"idea_{name}" in str(table)


def words_of(capsys: Any, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        app(list(words))
    printed = capsys.readouterr()
    assert end.value.code == 0, printed.err
    return printed.out


@pytest.mark.rest
def test_every_command_takes_them_together(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, fresh: Fresh):
    """Train, generate, info, check and export of a model with six of them; the export runs without the package."""
    monkeypatch.chdir(tmp_path)
    fields = {key: value for name in FIVE for key, value in FIELDS[name].items() if key not in ("embeddings", "stream")}
    fields |= {"embeddings": ["idea_value_embedding", "idea_ngram"], "stream": "idea_x0_scalars"}
    plugins = [str(IDEAS / f"{name}.py") for name in FIVE]
    values = recipe_values(write_text(tmp_path), model={**fields, "plugins": plugins, "num_hidden_layers": 3})
    Path("ideas.yaml").write_text(yaml.safe_dump(values))
    words_of(capsys, "train", "ideas.yaml", "--output-dir", "run")
    folder = next(Path("run").rglob("metrics.jsonl")).parent
    info = words_of(capsys, "info", str(folder))
    for key in ("idea_x0_scalars", "idea_loop", "idea_ngram", "idea_canon", "idea_multi_token"):
        assert key in info
    assert words_of(capsys, "generate", str(folder), "--prompt", "the ")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any("loss_idea_multi_token" in row for row in rows)

    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        logits = model(tokens).logits
    generated = model.generate(tokens, max_new_tokens=6, do_sample=False)
    Path("staged").mkdir()
    stage_model(folder / "model", Path("staged"))
    save_file({"tokens": tokens, "logits": logits, "generated": generated}, "staged/expected.safetensors")
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = fresh(STRANGER, "staged", env=elsewhere, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["canon", "ngram", "loop", "multi_token"])
def test_check_takes_a_file(name: str, tmp_path: Path, capsys: Any):
    path = tmp_path / "checked.py"
    path.write_text((IDEAS / f"{name}.py").read_text().replace("idea_", "checked_"))
    assert f"checked_{name}" in words_of(capsys, "check", str(path))
