"""Questions about the tokenizer: fair at equal bytes of one text and by bits per byte, and confounded otherwise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from hf_arch.analysis.compare import compare_runs
from hf_arch.data import prepare_data
from hf_arch.data.options import DataOptions
from hf_arch.data.text_bytes import text_bytes
from tests.experiments.synthetic import write_run
from tests.traps.real_sets import trained

SEEDS = (1, 2, 3, 4)
Given = dict[str, Any]


def side(vocabulary: int, bytes_a_token: float, steps: int, **changes: Any) -> tuple[Given, Given]:
    """(results, config) of a run with a tokenizer of its own: all bytes of one text are scored."""
    tokens = steps * 4096
    text = {"seen": tokens * bytes_a_token, "scored": 99_900.0, "held_out": 100_000, "fingerprint": "t" * 16}
    results = {
        "tokens_seen": tokens,
        "params_total": 1_000_000 + 128 * vocabulary,
        "params_active": 1_000_000 + 128 * vocabulary,
        "params_embedding": 128 * vocabulary,
        "val_tokens": 99_900 / bytes_a_token,
        **{key: f"{key}-{vocabulary}" for key in ("data_fingerprint", "tokenizer_fingerprint", "text_fingerprint")},
        "text_bytes": {**text, **changes.pop("text_bytes", {})},
    }
    config = {
        "data": {"vocab_size": vocabulary, **changes.pop("data", {})},
        "training": {"max_steps": steps, **changes.pop("training", {})},
        "evaluation": {"sequences": None, **changes.pop("evaluation", {})},
        "model": {"architecture": "llama", **changes.pop("model", {})},
        "run": {"question": ["data.vocab_size", "training.max_steps"], "learning_rates": None},
    }
    return {**results, **changes}, config


SMALL, LARGE = side(512, 2.0, 250), side(1024, 2.5, 200)


def judged(root: Path, large: tuple[Given, Given], small: tuple[Given, Given] = SMALL, metric: str = "") -> Any:
    """The verdict on a claim that bits per byte decide: 1.50 against 1.60."""
    for name, (results, config), loss, bits in (("large", large, 3.7, 1.5), ("small", small, 3.2, 1.6)):
        for seed in SEEDS:
            noise = random.Random(f"{name}-{seed}").gauss(0, 0.002)
            given = {
                **results,
                "architecture": "llama",
                "bits_per_byte": (loss + noise) * bits / loss,
                "order_fingerprint": f"{name}-{seed}",
            }
            config = {**config, "experiment": {"metric": metric or "bits_per_byte"}}
            write_run(
                root, name, seed, loss=loss + noise, hypothesis="large better than small", results=given, config=config
            )
    comparison = compare_runs(root, metric=metric or "bits_per_byte")
    [verdict] = comparison.verdicts
    return verdict


def test_equal_bytes_of_one_text_are_fair(tmp_path: Path) -> None:
    verdict = judged(tmp_path, LARGE)
    assert verdict.outcome == "supported" and verdict.confounds == (), verdict.evidence


TRAPS: dict[str, tuple[str, tuple[Given, Given]]] = {
    "equal tokens, more bytes": ("tokens", side(1024, 2.5, 250)),
    "other held-out text": ("data", side(1024, 2.5, 200, text_bytes={"fingerprint": "u" * 16})),
    "less held-out text scored": ("rows", side(1024, 2.5, 200, text_bytes={"scored": 50_000.0})),
    "every other row": ("rows", side(1024, 2.5, 200, evaluation={"rows": "odd"})),
    "a text that was not recorded": ("data", side(1024, 2.5, 200, text_bytes={"fingerprint": None})),
    "another weight decay": ("optimiser", side(1024, 2.5, 200, training={"weight_decay": 0.0})),
    "another warm-up": ("schedule", side(1024, 2.5, 200, training={"warmup_steps": 40})),
    "a wider model": ("parameters", side(1024, 2.5, 200, model={"hidden_size": 192}, params_total=2_000_000)),
    "longer rows": ("tokenizer", side(1024, 2.5, 200, data={"sequence_length": 512})),
    "dropout": ("dropout", side(1024, 2.5, 200, components={"dropout": "residual 0.1"})),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_else_differs_confounds(trap: str, tmp_path: Path) -> None:
    check, large = TRAPS[trap]
    verdict = judged(tmp_path, large)
    assert verdict.outcome == "confounded" and check in verdict.confounds, verdict.evidence


@pytest.mark.parametrize("metric", ["final_val_loss", "final_val_perplexity", "train_tokens_per_second"])
def test_what_is_counted_in_tokens_says_nothing(metric: str, tmp_path: Path) -> None:
    verdict = judged(tmp_path, LARGE, metric=metric)
    assert verdict.outcome not in ("supported", "contradicted")
    assert "tokenizer" in verdict.confounds
    assert any("judge by bits_per_byte" in reason for reason in verdict.reasons)


def test_the_text_is_the_same_under_every_tokenizer_and_another_after_one_byte(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} costs {i * i} € and ends.\n" for i in range(4000)))
    found = {}
    for name, vocabulary in (("byte", 512), ("bpe", 300), ("bpe", 600)):
        options = DataOptions(corpus=str(text), tokenizer=name, vocab_size=vocabulary, sequence_length=32)
        data = prepare_data(options, cache_dir=tmp_path / "cache", progress=False)
        tokens = data.validation.num_tokens
        found[name, vocabulary] = text_bytes(
            data.tokenizer, data.train, data.validation, tokens_seen=100, tokens_scored=tokens
        )
    assert len({entry["fingerprint"] for entry in found.values()}) == 1
    assert all(entry["scored"] == pytest.approx(entry["held_out"]) for entry in found.values())
    assert found["bpe", 600]["seen"] > found["bpe", 300]["seen"] > found["byte", 512]["seen"]
    text.write_text(text.read_text().replace("Line 0 ", "Line x "))
    options = DataOptions(corpus=str(text), tokenizer="byte", vocab_size=512, sequence_length=32)
    data = prepare_data(options, cache_dir=tmp_path / "cache", progress=False)
    other = text_bytes(data.tokenizer, data.train, data.validation, tokens_seen=1, tokens_scored=1)
    assert other["fingerprint"] != found["byte", 512]["fingerprint"]


@pytest.mark.slow
def test_two_vocabularies_really_trained(tmp_path: Path) -> None:
    """Equal bytes (26 steps of 512 tokens at 1.95 bytes, 20 at 2.55) are fair; equal steps are not."""
    claim = "large better than small; more better than small"
    runs = {
        "small": {"data.vocab_size": 512, "training.max_steps": 26},
        "large": {"data.vocab_size": 1024, "training.max_steps": 20},
        "more": {"data.vocab_size": 1024, "training.max_steps": 26},
    }
    found = trained(tmp_path, runs, claim, experiment={"metric": "bits_per_byte"})
    assert {finding.check for finding in found.confounds("large", "small")} <= {"still learning"}
    unequal = [finding.sentence for finding in found.confounds("more", "small") if finding.check == "tokens"]
    assert unequal and "bytes of text in training differ by" in unequal[0]
