"""lm_eval's own `hf` model, and other libraries' commands by `hf-arch with`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "hf_arch", "with", *command]
    return subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.parametrize("name", ["llama", "gated_delta_net"])
def test_hf_of_lm_eval_scores_rows(name: str, models: dict[str, Path]) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(models[name]), device="cpu", batch_size=2)
    rows = [("the cat", " sat"), ("a much longer context", " and"), ("b", " c")]
    made = [Instance("loglikelihood", {}, row, index) for index, row in enumerate(rows)]
    together = [score for score, _ in model.loglikelihood(made)]
    alone = [model.loglikelihood([one])[0][0] for one in made]
    assert together == pytest.approx(alone, abs=1e-4) and all(score < 0 for score in together)


def test_trl_sft_knows_our_models(models: dict[str, Path], tmp_path: Path) -> None:
    """`trl sft` trains in a process that accelerate starts."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"some text to train on, number {i}"}) + "\n" for i in range(8)))
    done = run(
        *("trl", "sft", "--model_name_or_path", str(models["gated_delta_net"])),
        *("--dataset_name", str(tmp_path), "--max_steps", "1", "--output_dir", str(tmp_path / "out")),
        *("--report_to", "none", "--use_cpu", "true", "--bf16", "false", "--per_device_train_batch_size", "2"),
        *("--max_length", "32", "--save_strategy", "no", "--dtype", "float32", "--gradient_checkpointing", "false"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "train_loss" in done.stdout + done.stderr
