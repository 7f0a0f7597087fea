"""Every `--dry-run`: nothing is written or fetched, and what it says is what the run then is."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_arch.cli import app
from hf_arch.experiments.planning.prepare import PreparedSet
from hf_arch.recipe.recipe import load_recipe
from hf_arch.runs.files import CONFIG_FILE
from hf_arch.training.run import run_training
from tests.evaluation.tiny import saved_model
from tests.fresh import COMMAND, ROOT, Fresh
from tests.training.tiny import recipe_values, write_recipe, write_text

KEYS = {"dry_run", "device", "hours", "basis", "memory_bytes", "disk_bytes", "warnings"}
CLAIM = {
    "hypothesis": "gla better than llama",
    "runs": {"llama": {}, "gla": {"model.architecture": "gla"}},
}


def call(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        app([str(word) for word in words])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with its cache, and no network."""

    def refuse(*_: object) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


@pytest.mark.sampled(2)
@pytest.mark.parametrize("command", ["train", "run", "probe", "data", "eval"])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_nothing_is_written(command: str, as_json: bool, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(work)
    recipe = write_recipe(work, text)
    saved_model(work / "saved", "gla")
    words = {
        "train": ["train", recipe],
        "run": ["run", recipe],
        "probe": ["probe", "gla", "llama", "--task", "parity", "--width", 8],
        "data": ["data", "prepare", text],
        "eval": ["eval", work / "saved", "--tasks", "perplexity", "--text", text],
    }[command]
    before = files(work)
    code, out, _ = call(capsys, *words, "--dry-run", *(["--json"] if as_json else []))
    assert code == 0 and files(work) == before
    if not as_json:
        assert "nothing was started or written" in out and "memory" in out and "disk" in out and " measured now" in out
        return
    found = json.loads(out)
    assert set(found) >= KEYS and found["dry_run"] is True
    assert 0 < found["hours"] < 1 and found["memory_bytes"] > 1000 and found["disk_bytes"] >= 0


@pytest.mark.parametrize(
    "words",
    [
        ["run", "tiny.yaml"],  # imports most
        ["data", "prepare", "text.txt"],  # imports least
        pytest.param(["train", "tiny.yaml"], marks=pytest.mark.slow),
        pytest.param(["probe", "gla", "--task", "parity"], marks=pytest.mark.slow),
    ],
)
def test_json_is_all_that_a_process_prints_on_stdout(words: list[str], work: Path, fresh: Fresh) -> None:
    write_recipe(work, write_text(work))
    path = {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    # transformers then prints as it is imported
    done = fresh(COMMAND, *words, "--dry-run", "--json", env=os.environ | path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["dry_run"] is True


@pytest.mark.parametrize("name", ["shakespeare", "tinystories", "fineweb-edu-10b"])
def test_data_that_is_not_here_stays_away(name: str, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = recipe_values(work / "none", data={"corpus": name, "tokenizer": "bpe", "vocab_size": 300})
    (work / "recipe.yaml").write_text(yaml.safe_dump(values))
    before = files(work)
    code, out, _ = call(capsys, "train", "recipe.yaml", "--dry-run", "--json")
    (warning,) = json.loads(out)["warnings"]
    assert code == 0 and f"{name!r} is not prepared" in warning and "vocabulary of 300" in warning
    code, out, _ = call(capsys, "data", "prepare", name, "--dry-run")
    assert code == 0 and name in out
    assert files(work) == before


def train_here(prepared: PreparedSet, *_: object) -> list[Any]:
    """In the place of `train_set`: each run in this process, as its own would train it."""
    for run in prepared.runs:
        run.write_config()
        run_training(load_recipe(run.folder / CONFIG_FILE), run.folder, resume=True, quiet=True)
    return []


@pytest.mark.rest
def test_a_dry_run_finds_the_data_and_the_runs_that_are_there(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_arch.experiments.execution.sets.train_set", train_here)
    text = write_text(work)
    recipe = write_recipe(work, text, experiment={"name": "set", "seeds": 2}, training={"max_steps": 4})
    _, out, _ = call(capsys, "run", recipe, "--results-dir", "set", "--dry-run", "--json")
    before = json.loads(out)["sets"][0]
    assert before["to_train"] == 2 and any("not prepared" in line for line in before["warnings"])
    assert call(capsys, "run", recipe, "--results-dir", "set")[0] == 0
    _, out, _ = call(capsys, "run", recipe, "--results-dir", "set", "--dry-run", "--json")
    after = json.loads(out)["sets"][0]
    assert after["to_train"] == 0 and after["hours"] == 0 and not after["warnings"]
    results = [json.loads(path.read_text()) for path in Path("set").glob("*/results.json")]
    run = after["runs"][0]
    assert {entry["params_total"] for entry in results} == {run["params_total"]}
    assert {entry["tokens_seen"] for entry in results} == {run["tokens"]}
    folder = next(Path("set").glob("*/results.json")).parent
    kept = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    kept += sum(path.stat().st_size for path in folder.rglob("optimizer.pt"))
    assert run["disk_bytes"] / 2 == pytest.approx(kept, rel=0.15)


def test_a_prepared_store_is_what_the_sample_said(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("text.txt", "rows.jsonl"):
        text = write_text(work)
        if name == "rows.jsonl":
            lines = text.read_text().splitlines()
            text = work / name
            text.write_text("".join(json.dumps({"text": line, "more": 7}) + "\n" for line in lines))
        words = ["data", "prepare", text, "--tokenizer", "byte", "--out", work / f"{name}-shards"]
        said = json.loads(call(capsys, *words, "--dry-run", "--json")[1])
        assert call(capsys, *words)[0] == 0
        done = json.loads(call(capsys, *words, "--json")[1])
        assert done["created"] is False
        # Rows end with a token that says so; the sample holds none.
        assert said["tokens"] == pytest.approx(sum(done["tokens"].values()), rel=0.05)
        shards = sum(path.stat().st_size for path in (work / f"{name}-shards").glob("*.bin"))
        assert said["disk_bytes"] == pytest.approx(shards, rel=0.05)
        again = json.loads(call(capsys, *words, "--dry-run", "--json")[1])
        assert again["ready"] and again["hours"] == 0


@pytest.mark.rest
@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        (1, "one seed decides nothing, so 'gla better than llama' will be undecided"),
        (2, "2 can hardly decide 'gla better than llama'"),
        (3, "power: 3 seeds and 1 claim find a difference of 3.3 times its spread"),
    ],
)
def test_seeds_that_cannot_decide_a_claim(
    seeds: int, expected: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(work, write_text(work), experiment={"name": "set", **CLAIM})
    _, out, _ = call(capsys, "run", recipe, "--seeds", seeds, "--dry-run")
    assert expected in " ".join(out.split())


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["run", "{recipe}", "--match", "size"], "experiment.match.by"),
        (["probe", "gla", "--task", "parity", "--match", "size"], "experiment.match.by"),
        (["run", "{recipe}", "--seeds", "0"], "--seeds"),
        (["probe", "gla", "--task", "parity", "--seeds", "0"], "--seeds"),
        (["run", "{recipe}", "--learning-rate", "-1"], "training.learning_rate"),
        (["probe", "gla", "--task", "parity", "--learning-rate", "-1"], "training.learning_rate"),
        (["train", "{recipe}", "--run", "none"], "--run"),
        (["data", "prepare", "none.txt"], "data.corpus"),
        (["data", "prepare", "{recipe}.jsonl", "--text-column", "words"], "data.text_column"),
        (["eval", "none", "--tasks", "perplexity"], "none"),
        (["eval", "none", "--tasks", "perplexity", "--batch-size", "0"], "--batch-size"),
    ],
)
def test_mistakes_end_it_like_the_command_itself(
    words: list[str], field: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(work, write_text(work))
    Path(f"{recipe}.jsonl").write_text('{"text": "a"}\n')
    before = files(work)
    code, out, err = call(capsys, *(word.format(recipe=recipe) for word in words), "--dry-run")
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and field in err and not out
    assert files(work) == before


@pytest.mark.rest
def test_run_takes_seeds_match_and_rates_as_probe_does(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(work, write_text(work), experiment={"name": "set", **CLAIM})
    words = ["run", recipe, "--seeds", 2, "--match", "flops", "--dry-run", "--json"]

    def runs(*more: Any) -> dict[str, Any]:
        (found,) = json.loads(call(capsys, *words, *more)[1])["sets"]
        return {run["name"]: run for run in found["runs"]}

    plain = runs()
    assert set(plain) == {"llama", "gla"} and {run["seeds"] for run in plain.values()} == {2}
    assert all(run["matched"] is not None and abs(run["matched"]) < 0.01 for run in plain.values())
    assert set(runs("--learning-rate", "1e-3")) == {"llama", "gla"}
    several = runs("--learning-rate", "1e-3", "--learning-rate", "3e-3")
    assert set(several) == {f"{name}-learning_rate-{rate}" for name in ("llama", "gla") for rate in (0.001, 0.003)}
    assert set(runs("experiment.matrix.training.learning_rate=[0.1,0.2]", "--learning-rate", "1e-3")) == {
        f"{name}-learning_rate-0.001" for name in ("llama", "gla")
    }


def test_a_run_that_goes_on_takes_what_is_left(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(work, write_text(work))
    assert call(capsys, "train", recipe, "--output-dir", "run")[0] == 0
    code, _, err = call(capsys, "train", recipe, "--output-dir", "run", "--dry-run")
    assert code == 2 and "contains a run already" in err
    words = ["train", recipe, "--output-dir", "run", "--extend-to", 12, "--dry-run", "--json"]
    (run,) = json.loads(call(capsys, *words)[1])["sets"][0]["runs"]
    assert run["tokens"] == 6 * 4 * 32  # 6 of 12 steps are done
