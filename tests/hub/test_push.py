"""Pushes by the real client to a server on loopback, and pulls from it by transformers in fresh processes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.hub.push import push_to_hub
from hf_arch.hub.repository import check_nothing_private

from .server import HubServer

PULL = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
results = []
for options in json.loads(sys.argv[1]):
    model = AutoModelForCausalLM.from_pretrained("alice/tiny", **options).eval()
    tokenizer = AutoTokenizer.from_pretrained("alice/tiny", **options)
    inputs = tokenizer("the king", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=4, do_sample=False)[0])
    results.append({"module": type(model).__module__, "logits": logits.sum().item(), "text": text})
print(json.dumps(results))
"""


@pytest.fixture
def hub():
    with HubServer({"hf_alice": "alice", "hf_bob": "bob"}) as server:
        yield server


@pytest.fixture
def push(hub, monkeypatch):
    """Makes calls of `push_to_hub` to the server; gives what each returned, or its error."""
    for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def run(*calls):
        results = []
        for call in calls:
            call = dict(call)
            monkeypatch.setenv("HF_TOKEN", call.pop("token", "hf_alice"))
            try:
                results.append(asdict(push_to_hub(**call)))
            except ConfigError as error:
                results.append(f"error: {error}")
        return results

    return run


@pytest.fixture
def pull(hub, python, tmp_path):
    """Loads the repository in a fresh process with an empty cache, once for each set of options."""

    def run(*options, installed):
        home = tmp_path / f"pulled_{'with' if installed else 'without'}"
        environment = hub.environment("hf_alice", home) | {"HF_MODULES_CACHE": str(home / "modules")}
        code = f"import hf_arch\n{PULL}" if installed else PULL
        done = python(code, json.dumps(options), installed=installed, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def expected_logits(folder: Path) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**AutoTokenizer.from_pretrained(folder)("the king", return_tensors="pt")).logits.sum().item()


@pytest.mark.rest
def test_a_run_is_pushed_pulled_and_pushed_again(hub, push, pull, run_folder):
    call = {"path": run_folder, "repo_id": "alice/tiny", "checkpoints": True}
    first, again = push(call, call)
    assert first["repo_id"] == "alice/tiny" and first["url"] == f"{hub.url}/alice/tiny"
    assert list(first["commits"]) == ["main", "step-3", "step-6"] and all(first["commits"].values())
    assert list(again["commits"].values()) == [None, None, None]
    repository = hub.repositories["alice/tiny"]
    assert not repository.private and len(repository.titles) == 4
    check_files({name: file.content for name, file in repository.files().items()}, run_folder)
    assert repository.files()["model.safetensors"].large

    (stranger,) = pull({"trust_remote_code": True}, installed=False)
    owner, early = pull({}, {"revision": "step-3"}, installed=True)
    assert stranger["module"].startswith("transformers_modules.")
    assert owner["module"] == "hf_arch.models.architectures.gla"
    # Nearly: how sums round may depend on where in memory a tensor lies; test_bundle compares bit by bit.
    final, after_3 = (expected_logits(run_folder / name) for name in ("model", "checkpoints/checkpoint-3"))
    assert stranger["logits"] == pytest.approx(final, abs=1e-4) and owner["logits"] == pytest.approx(final, abs=1e-4)
    assert early["logits"] == pytest.approx(after_3, abs=1e-4) and abs(after_3 - final) > 0.01
    assert stranger["text"] == owner["text"]


def check_files(files: dict[str, bytes], run_folder: Path) -> None:
    """Everything is there, the card is valid and measured, and nothing names this machine."""
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "loss_curve.png"):
        assert name in files
    assert not any(re.search(r"\.(bin|pt|pth|pkl)$", name) for name in files)
    card = ModelCard(files["README.md"].decode())
    results = json.loads((run_folder / "results.json").read_text())
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured["loss"] == pytest.approx(results["final_val_loss"], abs=1e-6)
    assert Image.open(io.BytesIO(files["loss_curve.png"])).format == "PNG"
    secrets = ["hf_alice", f"{Path.home()}{os.sep}", str(run_folder.parent), "PYTHONPATH", "LD_LIBRARY_PATH"]
    for name, content in files.items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


def test_changes_visibility_and_wrong_tokens(hub, push, saved_llama, tmp_path):
    """Several pushes in one process, each told apart by what it leaves behind."""
    sharded = tmp_path / "sharded"
    shutil.copytree(saved_llama, sharded)
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(saved_llama).save_pretrained(sharded, max_shard_size="20KB")
    mine = {"path": saved_llama, "repo_id": "alice/tiny"}
    no_token, wrong_token, no_right, first, changed, private, called_private = push(
        {**mine, "token": ""},
        {**mine, "token": "hf_wrong"},
        {**mine, "token": "hf_bob"},
        mine,
        {**mine, "path": sharded},
        {**mine, "repo_id": "alice/hidden", "private": True},
        {**mine, "private": True},
    )
    assert no_token == "error: token: none found; log in with `hf auth login`, or set HF_TOKEN"
    assert wrong_token == "error: token: the Hub does not accept it; log in with `hf auth login`, or set HF_TOKEN"
    assert no_right == "error: repo_id: the token has no right to write to 'alice/tiny'"
    assert first["commits"]["main"] and changed["commits"]["main"]
    files = hub.repositories["alice/tiny"].files()
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files
    assert hub.repositories["alice/tiny"].titles == ["initial commit", "Upload the model", "Upload the model"]
    assert private["commits"]["main"] and hub.repositories["alice/hidden"].private
    assert called_private == "error: --private: alice/tiny is public already; make it private on the Hub first"


def test_an_interrupted_upload_leaves_the_repository_as_it_was_and_can_be_repeated(hub, push, saved_llama):
    call = {"path": saved_llama, "repo_id": "alice/tiny"}
    hub.hold_uploads = True
    process = multiprocessing.get_context("fork").Process(target=push, args=(call,))
    process.start()
    assert hub.upload_began.wait(120)
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert hub.repositories["alice/tiny"].titles == ["initial commit"]
    hub.hold_uploads = False
    (done,) = push(call)
    assert done["commits"]["main"]
    assert "model.safetensors" in hub.repositories["alice/tiny"].files()


def test_a_dry_run_lists_every_file_and_asks_nobody(run_folder):
    push = push_to_hub(run_folder, "alice/tiny", dry_run=True, checkpoints=True)
    names = {(branch, name) for branch, name, _ in push.files}
    assert {("main", "README.md"), ("main", "model.safetensors"), ("step-3", "model.safetensors")} <= names
    assert not push.url and not push.commits


def test_a_hub_that_cannot_be_reached_is_one_line(saved_llama, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    done = CliRunner().invoke(app, ["push", str(saved_llama), "alice/tiny"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith("error: ConnectionError: the Hub cannot be reached")
    assert "Traceback" not in done.stderr


def test_a_wrong_name_and_missing_checkpoints_are_told(saved_llama):
    with pytest.raises(ConfigError, match="repo_id: "):
        push_to_hub(saved_llama, "a/b/c", dry_run=True)
    with pytest.raises(ConfigError, match="--checkpoints: "):
        push_to_hub(saved_llama, "a/b", dry_run=True, checkpoints=True)


def test_secrets_and_the_home_folder_stop_a_push(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    (tmp_path / "a.json").write_text("{}")
    check_nothing_private(tmp_path)
    for text in ("token hf_" + "a1B2" * 8, "correct-horse-battery"):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ConfigError, match=r"b\.json: contains a token or secret"):
            check_nothing_private(tmp_path)
    (tmp_path / "b.json").write_text(f'{{"path": "{Path.home() / "data"}"}}')
    with pytest.raises(ConfigError, match=r"b\.json: contains the path of your home folder"):
        check_nothing_private(tmp_path)
