"""What `hf-arch new` writes works as it is: it lints, passes `hf-arch check` and its own test, and its recipe plans."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib

import pytest

from hf_arch.cli import app
from hf_arch.cli.new import KINDS, new_files
from hf_arch.experiments.planning.plan import plan_runs
from hf_arch.recipe.recipe import load_recipe


def run(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        app(list(words))
    printed = capsys.readouterr()
    return end.value.code, printed.out, printed.err


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_works(kind, tmp_path, capsys, monkeypatch):
    name = f"my_{kind}_2"
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "new", kind, name, "--output", "ideas")
    assert code == 0 and f"hf-arch check ideas/{name}.py" in out
    files = sorted(path.name for path in (tmp_path / "ideas").iterdir())
    assert files == [f"{name}.py", f"{name}.yaml", f"test_{name}.py"]
    lint = [sys.executable, "-m", "ruff", "check", "--select", "E,F,W", "--line-length", "120", "ideas"]
    assert subprocess.run(lint, capture_output=True).returncode == 0
    assert "xample" not in (tmp_path / "ideas" / f"{name}.py").read_text().replace("examples", "")
    code, out, err = run(capsys, "check", f"ideas/{name}.py")
    assert code == 0, out + err
    recipe = load_recipe(f"ideas/{name}.yaml", scale="cpu")
    assert {planned.name for planned in plan_runs(recipe).runs} >= (
        {name} if kind not in ("probe", "metric", "column") else {"llama"}
    )


@pytest.mark.slow  # a process that imports everything anew
def test_its_test_runs(tmp_path, capsys):
    run(capsys, "new", "norm", "tested_norm", "--output", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixr", "a"], "kind: 'mixr' is not known; nearest: 'mixer'"),
        (["mixer", "Bad-Name"], "name: 'Bad-Name' is not allowed"),
        (["mixer", "gla"], "'gla' is a mixer of hf_arch already"),
        (["probe", "mqar"], "'mqar' is a probe of hf_arch already"),
        (["schedule", "cosine"], "'cosine' is a schedule of hf_arch already"),
    ],
)
def test_refusals_write_nothing(words, message, tmp_path, capsys):
    code, _, err = run(capsys, "new", *words, "--output", str(tmp_path / "new"))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_there_stays(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("kept")
    code, _, err = run(capsys, "new", "ffn", "mine", "--output", str(tmp_path))
    assert code == 2 and "exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_text() == "kept"


PLANTED = {
    "optimizer": [
        (
            'weight.mul_(1 - group["lr"] * group["weight_decay"])',
            'weight.mul_(1 - 0.01 * group["weight_decay"])',
            "rate",
        ),
        ("self.groups(parameters, settings)", "self.groups(parameters[:-1], settings)", "groups"),
        ("alpha=-group", "alpha=group", "loss falls"),
    ],
    "schedule": [
        ("math.sqrt(into / last)", "math.sqrt(into / (last - 1))", "rates"),
        ("return step / run.warmup", "return 1.0", "warm-up"),
        (
            "return 1.0 if",
            "self.asked = 1 + getattr(self, 'asked', 0)\n        return 1 / self.asked if",
            "same step, same rate",
        ),
        ('return {"decay": decay_steps}', 'return {"decay": 2 * decay_steps}', "branches"),
    ],
    "init": [
        ("nn.init.normal_(parameter, std=", "nn.init.normal_(parameter, mean=float('nan'), std=", "fills"),
        (
            "nn.init.normal_(parameter, std=(",
            "nn.init.constant_(parameter, self.config.num_hidden_layers * (",
            "draws are named",
        ),
    ],
    "metric": [
        (
            "torch.stack([entropy[counted].sum(), counted.sum()])",
            "torch.stack([entropy[counted].mean(), entropy.new_ones(())])",
            "batches",
        ),
        ("entropy[counted].sum(), counted.sum()", "entropy[counted].sum() / 0, counted.sum()", "a number"),
        (
            "counted = batch",
            "model.train()\n        next(model.parameters()).data.mul_(1.5)\n        counted = batch",
            "leaves the model",
        ),
    ],
    "column": [
        ('record.numbers.get("flops_per_token")', 'record.numbers["flops_per_token"]', "an older run"),
        ("loss * flops / 1e6", "[loss]", "a finished run"),
    ],
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("kind", "planted"), [(kind, fault) for kind, faults in PLANTED.items() for fault in faults])
def test_faults_are_found(kind, planted, tmp_path, capsys):
    """The checks of what `new` writes can fail: each on a fault of its own."""
    before, after, failing = planted
    name = f"faulty_{kind}_{zlib.crc32(after.encode())}"
    text = new_files(kind, name)[f"{name}.py"]
    assert before in text
    (tmp_path / f"{name}.py").write_text(text.replace(before, after))
    code, out, _ = run(capsys, "check", str(tmp_path / f"{name}.py"))
    assert code == 1 and re.search(rf"fails.*{failing}", out), out
