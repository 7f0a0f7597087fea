"""The card says what was measured and nothing else, in metadata that the Hub reads and in text for people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import hf_arch
from hf_arch.core.files import write_json
from hf_arch.hub.card import write_card
from hf_arch.hub.run_facts import comparison_of, find_run, without_paths
from hf_arch.runs.suite import write_suite_results
from tests.traps.test_controls import study


@pytest.fixture
def copied_run(run_folder: Path, tmp_path: Path) -> Path:
    """A run of its own, so that files can be laid beside it."""
    return Path(shutil.copytree(run_folder, tmp_path / "set" / "tiny_run"))


def card_of(run: Path, tmp_path: Path, **options) -> ModelCard:
    folder = tmp_path / f"card{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    write_card(folder, run / "model", find_run(run), **{"repo_id": "alice/tiny", **options})
    return ModelCard.load(folder / "README.md")


def test_a_run_gives_its_numbers_and_nothing_is_left_open(copied_run: Path, tmp_path: Path):
    card = card_of(copied_run, tmp_path)
    results = json.loads((copied_run / "results.json").read_text())
    config = hf_arch.config_from_dict(json.loads((copied_run / "experiment_config.json").read_text())["model"])
    assert results["architecture_name"] in card.text
    assert f"| parameters | {results['params_total']:,} |" in card.text
    assert f"| validation loss (nats a token) | {results['final_val_loss']:.4f} |" in card.text
    assert "Training data: Local files: text.txt." in card.text and "corpus: text.txt" in card.text
    assert "A tiny model learns | something." in card.text
    assert "![Validation loss" in card.text and "(loss_curve.png)" in card.text
    assert 'from_pretrained("alice/tiny", trust_remote_code=True)' in card.text and "import hf_arch" in card.text
    for open_end in ("TBD", "None", "nan", "Nothing was measured", "{{", "{%", "\n\n\n"):
        assert open_end not in card.text
    assert str(tmp_path) not in card.text and "private" not in card.text
    loss, perplexity, bits = card.data.eval_results
    assert (loss.metric_type, perplexity.metric_type, bits.metric_type) == ("loss", "perplexity", "bits_per_byte")
    assert bits.metric_value == pytest.approx(results["bits_per_byte"], abs=1e-6)
    assert (loss.dataset_name, loss.dataset_split) == ("text.txt (validation)", "validation")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.license is None and "none is stated" in card.text
    assert config.model_type in card.data.tags


def test_the_same_run_gives_the_same_files(copied_run: Path, tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_card(tmp_path / name, copied_run / "model", find_run(copied_run), repo_id="alice/tiny")
    for file in ("README.md", "loss_curve.png"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_model_without_a_run_says_that_nothing_was_measured(saved_llama: Path, tmp_path: Path):
    (tmp_path / "card").mkdir()
    write_card(tmp_path / "card", saved_llama, None, repo_id="alice/tiny", license="apache-2.0")
    card = ModelCard.load(tmp_path / "card" / "README.md")
    assert "Nothing was measured" in card.text
    assert "## Measured" not in card.text and "## Training" not in card.text
    assert card.data.eval_results is None
    assert card.data.license == "apache-2.0" and "The weights: apache-2.0." in card.text


def test_a_checkpoint_has_the_numbers_of_its_own_step(copied_run: Path, tmp_path: Path):
    metrics = [json.loads(line) for line in (copied_run / "metrics.jsonl").read_text().splitlines()]
    (at_3,) = [row["val_loss"] for row in metrics if row["step"] == 3 and "val_loss" in row]
    card = card_of(copied_run, tmp_path, step=3, revision="step-3")
    assert card.data.eval_results[0].metric_value == pytest.approx(at_3, abs=1e-6)
    assert "checkpoint at step 3" in card.text and 'revision="step-3"' in card.text
    assert "training speed" not in card.text and "loss_curve.png" not in card.text


def test_evaluations_and_the_comparison_are_told(copied_run: Path, tmp_path: Path):
    scores = {
        "hellaswag": {
            "acc_norm": 0.31,
            "acc_norm_stderr": 0.02,
            "samples": 40,
            "rows": "a place",
            "settings": {"limit": 40},
        },
        "perplexity": {"perplexity": 9.5, "tokens": 1234, "rows": "held-out text"},
    }
    write_json(copied_run / "evaluation.json", {"results": scores})
    other = Path(shutil.copytree(copied_run, copied_run.parent / "other_run"))
    for file, key in (("results.json", "name"), ("experiment_config.json", None)):
        values = json.loads((other / file).read_text())
        if key:
            values |= {"name": "other", "final_val_loss": values["final_val_loss"] - 0.5}
        write_json(other / file, values)
    write_suite_results(copied_run.parent)
    card = card_of(copied_run, tmp_path)
    assert "| hellaswag | acc_norm | 0.31 ± 0.02 | first 40 | a place |" in card.text
    assert {("hellaswag (first 40)", "acc_norm", 0.31), ("perplexity (1,234)", "perplexity", 9.5)} <= {
        (result.dataset_name, result.metric_type, result.metric_value) for result in card.data.eval_results
    }
    assert "## Comparison" in card.text and "| other |" in card.text and "| tiny |" in card.text
    assert "other has the best validation loss" in card.text and "Fairness audit:" in card.text


def test_the_card_says_of_a_claim_what_the_comparison_says(tmp_path: Path):
    """A claim with its outcome, the reasons against it, and what controls leave: not a hypothesis alone."""
    comparison = study(tmp_path)
    write_suite_results(tmp_path)
    facts = comparison_of(comparison.group("gla").reference)
    assert facts is not None and facts["headline"] == comparison.headline
    [verdict], [control] = comparison.verdicts, comparison.controls
    claim, with_controls = facts["claims"]
    when = verdict.registration.sentence  # the study has no claims.json
    assert when is not None and when.startswith("not registered") and verdict.outcome == "confounded"
    assert claim == f"{verdict.claim}: **confounded** ({when}). {verdict.evidence}"
    assert with_controls.endswith(control.sentence)


def test_paths_are_cut_to_names():
    values = {"corpus": "/home/somebody/data/text.txt", "list": ["~/x/y.json", "C:\\data\\z.txt", "./a/b/"]}
    assert without_paths(values) == {"corpus": "text.txt", "list": ["y.json", "z.txt", "b"]}
    assert without_paths({"tokenizer": "user/name", "n": 3}) == {"tokenizer": "user/name", "n": 3}
