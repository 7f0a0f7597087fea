"""The command line: one path through all of it, and mistakes that end in one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hf_arch
from hf_arch.cli import app
from tests.training.tiny import write_recipe, write_text


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ARCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert call("train", write_recipe(folder, text), "--output-dir", folder / "run")[0] == 0
    return folder / "run"


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `hf-arch ARGUMENTS` in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_train_tells_what_it_does_and_what_came_of_it(text: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, text)
    code, out, err = call("train", recipe, "training.max_steps=2", "--output-dir", tmp_path / "run")
    assert code == 0
    for said in (
        "2L-2H-32D-RoPE-RMS-SwiGLU-PreNorm",
        "fp32: asked for by the recipe",
        "tiny: completed",
        "torch.compile",
    ):
        assert said in out
    assert "step 2/2" in err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 2


@pytest.mark.rest
def test_a_folder_is_found_by_name_and_hash(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, text)
    assert call("train", recipe, "training.max_steps=1")[0] == 0
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name.startswith("tiny_")
    code, _, err = call("train", recipe, "training.max_steps=1")
    assert code == 2 and "--resume" in err
    assert call("train", recipe, "training.max_steps=1", "--resume")[0] == 0


@pytest.mark.rest
def test_generate_is_reproducible_and_streams_to_stdout(trained: Path) -> None:
    first = call("generate", trained, "--prompt", "the king", "--max-new-tokens", 12, "--seed", 4)
    again = call("generate", trained / "model", "--prompt", "the king", "--max-new-tokens", 12, "--seed", 4)
    other = call("generate", trained, "--prompt", "the king", "--max-new-tokens", 12, "--seed", 5)
    greedy = call("generate", trained, "--prompt", "the king", "--max-new-tokens", 12, "--temperature", 0)
    assert [code for code, _, _ in (first, again, other, greedy)] == [0, 0, 0, 0]
    assert first[1].startswith("the king") and len(first[1]) > len("the king\n")
    assert first[1] == again[1] != other[1]
    assert "tokens/s" in first[2]


def test_compare_and_report_read_the_run(trained: Path) -> None:
    code, out, _ = call("compare", trained, "--json")
    assert code == 0
    assert "tiny" in json.dumps(json.loads(out))
    assert call("report", trained.parent, "--output", trained.parent / "page.html")[0] == 0
    assert "tiny" in (trained.parent / "page.html").read_text()


def test_list_and_info_as_json_are_one_document(text: Path, trained: Path, tmp_path: Path) -> None:
    names = [row["name"] for row in json.loads(call("list", "--json")[1])]
    assert names == hf_arch.list_architectures()
    components = json.loads(call("list", "--components", "--json")[1])
    assert {"gla", "attention"} <= {row["name"] for row in components if row["kind"] == "mixer"}
    report = json.loads(call("info", "llama", "--seq-len", 64, "hidden_size=72", "num_hidden_layers=2", "--json")[1])
    config = hf_arch.config_from_dict({"architecture": "llama", "hidden_size": 72, "num_hidden_layers": 2})
    assert report["params_total"] == hf_arch.cost(config, 64).params_total
    assert report["name"].startswith("2L-")
    saved = json.loads(call("info", trained, "--json")[1])
    by_recipe = json.loads(call("info", write_recipe(tmp_path, text), "model.vocab_size=26", "--json")[1])
    assert saved["architecture"] == by_recipe["architecture"] == "llama"


def test_info_for_people_shows_components_and_cost() -> None:
    code, out, _ = call("info", "gla")
    assert code == 0
    assert "GLA" in out and "train FLOPs per token" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inf"], "'info'"),
        (["train"], "RECIPE"),
        (["train", "none.yaml"], "none.yaml: no such file"),
        (["train", "{recipe}", "--resum"], "--resume"),
        (["train", "{recipe}", "training.max_step=3"], "nearest: 'max_steps'"),
        (["train", "{recipe}", "model.hidden_sise=3"], "nearest: 'hidden_size'"),
        (["train", "{recipe}", "--run", "tini"], "nearest: 'tiny'"),
        (["train", "{recipe}", "--distributed", "sometimes"], "--distributed"),
        (["train", "{recipe}", "--scale", "cpu"], "--scale"),
        (["train", "{recipe}", "experiment.seeds=[1,2]"], "hf-arch run"),
        (["run", "{recipe}", "--engine", "slrum"], "--engine"),
        (["run", "{recipe}", "--scale", "cpu"], "--scale"),
        (["info", "lama"], "nearest: 'llama'"),
        (["info", "llama", "num_attention_heads=12", "hidden_size=320"], "num_attention_heads"),
        (["info", "llama", "hiden_size=320"], "nearest: 'hidden_size'"),
        (["info", "llama", "--seq-len", "0"], "--seq-len"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere: no such folder"),
        (["generate", "{folder}", "--prompt", "x"], "contains no model"),
        (["generate", "{folder}", "--prompt", "x", "--top-p", "2"], "top_p: expected"),
        (["compare"], "no runs given"),
        (["compare", "nowhere"], "nowhere"),
        (["report", "nowhere"], "nowhere"),
        (["data", "prepare", "nowhere.txt"], "nowhere.txt"),
        (["list", "--jsn"], "--json"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    recipe = write_recipe(tmp_path, text)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    filled = [argument.format(recipe=recipe, folder=tmp_path) for argument in arguments]
    code, out, err = call(*filled)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert expected in err
    assert list(work.iterdir()) == []


def test_a_failed_run_is_exit_code_1(text: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, text)
    wild = ["training.learning_rate=1e30", "training.warmup_steps=0", "training.max_grad_norm=0"]
    code, _, err = call("train", recipe, *wild, "--output-dir", tmp_path / "run")
    assert code == 1
    assert "Traceback" not in err
    assert "loss became" in err.splitlines()[-1]


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hf_arch", *arguments], capture_output=True, text=True, env=dict(os.environ)
    )


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["train", "--help"], 0), (["trian"], 2), (["train", "none.yaml"], 2)]
)
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[str], code: int) -> None:
    """That is what makes them quick, and it can be seen on a machine under any load."""
    program = (
        "import sys; sys.argv = ['hf-arch', *sys.argv[1:]]\n"
        "from hf_arch.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "AssertionError" not in done.stderr


def test_python_m_is_the_command() -> None:
    done = shell("--version")
    assert done.returncode == 0
    assert done.stdout == f"hf_arch {hf_arch.__version__}\n"


def test_a_dry_run_shows_the_runs_and_starts_none(text: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, text, training={"max_steps": 2}, experiment={"name": "set", "seeds": 2})
    code, out, _ = call("run", recipe, "--results-dir", tmp_path / "set", "--dry-run")
    assert code == 0
    assert "2 of 2 runs to train" in out and "nothing was started" in out
    assert not (tmp_path / "set").exists()


def test_a_set_is_trained_compared_and_reported_and_then_kept(text: Path, tmp_path: Path) -> None:
    """A good run and a failing one: each in its process, the failing one named, the good one compared, and kept."""
    gla = {"model.architecture": "gla"}
    wild = {"training.learning_rate": 1e30, "training.warmup_steps": 0, "training.max_grad_norm": 0.0}
    results_dir = tmp_path / "set"

    def recipe(runs: dict[str, object]) -> Path:
        return write_recipe(tmp_path, text, training={"max_steps": 2}, experiment={"name": "set", "runs": runs})

    code, _, err = call("run", recipe({"gla": gla, "wild": wild}), "--results-dir", results_dir)
    assert code == 1
    assert "loss became" in err
    files = {path.parent.name.rpartition("_")[0]: path for path in results_dir.glob("*/results.json")}
    statuses = {name: json.loads(file.read_text())["status"] for name, file in files.items()}
    assert statuses == {"gla": "completed", "wild": "failed"}
    assert (results_dir / "report.html").is_file()
    assert (results_dir / "experiment_suite_results.json").is_file()

    before = files["gla"].read_bytes()
    code, out, err = call("run", recipe({"gla": gla}), "--results-dir", results_dir)
    assert code == 0
    assert "finished already" in err
    assert "gla" in out
    assert files["gla"].read_bytes() == before
