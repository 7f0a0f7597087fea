"""`hf-arch bench`: what it counts is exact, ratios are taken within rounds, counterparts are the same function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import hf_arch
from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.bench import BenchOptions, Candidate, Subject, _add_ratios, run_bench
from hf_arch.evaluation.roofline import Roofline, limit_seconds, measure_roofline
from hf_arch.evaluation.tensor_memory import cache_bytes, peak_tensor_bytes, tensor_bytes
from hf_arch.experiments.planning.bench_models import counterpart, find_candidates
from tests.evaluation.tiny import saved_model, tiny_model

SMALL = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=4", "vocab_size=64"]
OPTIONS = BenchOptions(seq_len=(8, 16), repeats=1, decode_tokens=2, device="cpu")
CPU = torch.device("cpu")


def test_the_peak_is_what_the_work_holds_at_once() -> None:
    x = torch.ones(256, 256)  # no plain numbers below: they become tensors of a few bytes
    one = x.numel() * 4
    assert peak_tensor_bytes(lambda: None, CPU) == 0

    def two_at_once() -> None:
        first = x + x
        second = first * x
        del first
        _ = second - x

    assert peak_tensor_bytes(two_at_once, CPU) == 2 * one
    assert peak_tensor_bytes(lambda: [x + x for _ in range(3)].clear(), CPU) == 3 * one


def test_storages_count_once() -> None:
    x = torch.zeros(10)
    assert tensor_bytes([x, x.view(2, 5), None, 3]) == 40


@pytest.mark.parametrize("name", ["llama", "gla", "mamba", "hybrid"])
def test_the_cache_is_as_large_as_its_cost_says(name: str) -> None:
    model = tiny_model(name)
    tokens = torch.randint(3, 200, (2, 12))
    with torch.no_grad():
        cache = model(tokens, use_cache=True).past_key_values
    assert cache_bytes(cache) == hf_arch.cost(model.config, 12, batch_size=2).state_bytes(12)


def test_a_step_needs_weights_gradients_moments_and_activations() -> None:
    (candidate,) = find_candidates(["llama", *SMALL], tokens=32, against=None)
    subject = Subject(candidate, OPTIONS)
    tokens = torch.randint(3, 64, (1, 8))
    subject.train(tokens)
    weights = sum(parameter.numel() * 4 for parameter in subject.model.parameters())
    assert subject.peak_memory(tokens) > 4 * weights
    assert subject.peak_memory(tokens) == subject.peak_memory(tokens)
    assert subject.peak_memory(torch.cat([tokens] * 8)) > subject.peak_memory(tokens)


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    """The machine slows down tenfold after the first round; the second model is twice as fast throughout."""
    seconds = ([1.0, 10.0, 10.0], [0.5, 5.0, 5.0])
    rows = [
        {"seconds": dict.fromkeys(("train", "prefill", "decode"), times), "peak_memory_bytes": 8, "cache_bytes": size}
        for times, size in zip(seconds, (4, 1), strict=True)
    ]
    build = tiny_model  # never called
    _add_ratios(rows, [Candidate("a", "hf_arch", build), Candidate("b", "hf_arch", build, baseline="a")])
    expected = {"to": "a", "train": 2.0, "prefill": 2.0, "decode": 2.0, "peak_memory": 1.0, "cache": 0.25}
    assert rows[1]["ratio"] == expected
    assert "ratio" not in rows[0]


@pytest.mark.parametrize(("name", "theirs"), [("gpt2", "GPT2"), ("llama", "Llama"), ("mamba", "Mamba")])
def test_the_counterpart_is_the_same_function(name: str, theirs: str) -> None:
    (ours,) = find_candidates([name, *SMALL], tokens=32, against=None)
    found = counterpart(ours)
    assert found is not None
    model = found.build()
    assert type(model).__name__.startswith(theirs)
    tokens = torch.randint(3, 64, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(ours.build()(tokens).logits, model(tokens).logits, rtol=0, atol=1e-4)


def test_another_function_is_not_measured_as_a_counterpart() -> None:
    from hf_arch.experiments.planning.bench_models import _check_same

    ours, other = (tiny_model("llama") for _ in range(2))
    _check_same(ours, other)
    torch.nn.init.normal_(other.lm_head.weight)
    with pytest.raises(AssertionError, match="gives other logits"):
        _check_same(ours, other)


@pytest.mark.rest
def test_all_are_measured_at_all_lengths() -> None:
    said: list[str] = []
    found = find_candidates(
        ["llama", "gla", *SMALL], tokens=OPTIONS.longest, against="transformers", report=said.append
    )
    assert [candidate.label for candidate in found] == ["llama", "llama (transformers)", "gla"]
    assert said == ["gla: transformers has no counterpart of these options; measured alone"]
    rows = run_bench(found, OPTIONS)["results"]
    assert [(row["name"], row["seq_len"]) for row in rows] == [
        (n, t) for t in (8, 16) for n in ("llama", "llama", "gla")
    ]
    for row in rows:
        assert min(row[f"{phase}_tokens_per_second"] for phase in ("train", "prefill", "decode")) > 0
    ours, theirs, gla = (row["cache_bytes"] for row in rows[3:])
    assert ours == theirs
    assert gla == rows[2]["cache_bytes"]  # a state does not grow
    assert rows[0]["ratio"]["to"] == "llama (transformers)"
    assert rows[0]["params_total"] == rows[1]["params_total"]


def test_half_precision_reads_in_it_and_trains_under_autocast() -> None:
    options = BenchOptions(seq_len=(8,), repeats=1, decode_tokens=2, device="cpu", dtype="bf16")
    (candidate,) = find_candidates(["llama", *SMALL], tokens=options.longest, against=None)
    subject = Subject(candidate, options)
    assert subject.model.dtype is torch.float32
    assert subject.reader.dtype is torch.bfloat16
    assert subject.train(torch.randint(3, 64, (1, 8))) > 0


def test_recipes_and_saved_models_are_measured_too(tmp_path: Path) -> None:
    recipe = tmp_path / "two.yaml"
    recipe.write_text(
        json.dumps(
            {
                "model": {"architecture": "llama", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
                "experiment": {"name": "two", "runs": {"wide": {"model.hidden_size": 64}, "plain": {}}},
            }
        )
    )
    saved = saved_model(tmp_path / "saved", "gla")
    found = find_candidates([str(recipe), str(saved)], tokens=300, against=None)
    assert [candidate.name for candidate in found] == ["wide", "plain", "saved"]
    assert [candidate.baseline for candidate in found] == [None, "wide", "wide"]
    assert found[2].build().config.max_position_embeddings >= 300


def test_the_command_prints_one_document_and_draws(tmp_path: Path) -> None:
    figure = tmp_path / "speed.svg"
    arguments = ["bench", "llama", "mamba", *SMALL, "--seq-len", "8,16", "--repeats", "1", "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--plot", str(figure), "--output-json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert len(document["results"]) == 4
    assert document["provenance"]["threads"] >= 1
    assert "mamba" in figure.read_text()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: find_candidates(["lama"], tokens=8, against=None), "nearest: 'llama'"),
        (lambda: find_candidates(["hidden_size=32"], tokens=8, against=None), "ARCH: name at least one"),
        (lambda: find_candidates(["llama"], tokens=8, against="transfomers"), "nearest: 'transformers'"),
        (lambda: find_candidates(["gla", *SMALL], tokens=8, against="transformers"), "no counterpart of gla"),
        (lambda: BenchOptions(seq_len=(0,)), "--seq-len: 0"),
        (lambda: BenchOptions(batch_size=0), "--batch-size: 0"),
        (lambda: BenchOptions(dtype="fp61"), "nearest: 'fp16'"),
        (lambda: BenchOptions(dtype="fp16", device="cpu"), "needs a GPU"),
    ],
)
def test_mistakes_are_named(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        call()


def test_a_limit_is_the_slower_of_products_and_memory() -> None:
    config = hf_arch.tiny_config("llama")
    cost = hf_arch.cost(config, 16, 2)
    by_products = limit_seconds(config, 16, 2, Roofline({"fp32": 1e6, "bf16": 2e6}, copy_bytes=1e30), "fp32")
    assert by_products["train"] == pytest.approx(cost.flops_per_token_train * 32 / 1e6)
    assert by_products["decode"] == pytest.approx(cost.decode_flops(16) / 1e6)
    half = limit_seconds(config, 16, 2, Roofline({"fp32": 1e6, "bf16": 2e6}, copy_bytes=1e30), "bf16")
    assert half["prefill"] == pytest.approx(by_products["prefill"] / 2)
    by_memory = limit_seconds(config, 16, 2, Roofline({"fp32": 1e30}, copy_bytes=1e6), "fp32")
    assert by_memory["train"] == pytest.approx(40 * cost.params_total / 1e6)
    model = AutoModelForCausalLM.from_config(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    assert by_memory["decode"] == pytest.approx((4 * weights + cost.state_bytes(16)) / 1e6)


@pytest.mark.rest
def test_a_row_has_its_share_of_what_the_machine_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_arch.evaluation.roofline.SECONDS", 0.02)
    limits = measure_roofline(CPU)
    assert set(limits.product_flops) == {"fp32", "bf16"} and min(limits.product_flops.values()) > 1e8
    assert limits.copy_bytes > 1e8
    arguments = ["bench", "llama", *SMALL, "--against", "transformers", "--seq-len", "8", "--repeats", "1"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--roofline", "--json"])
    document = json.loads(result.stdout)
    assert set(document["roofline"]["product_flops"]) == {"fp32", "bf16"}
    rows = document["results"]
    assert len(rows) == 2
    for row in rows:
        assert set(row["roofline_share"]) == {"train", "prefill", "decode"}
        assert all(0 < share < 1 for share in row["roofline_share"].values())
    shares, speeds = ([row[key] for row in rows] for key in ("roofline_share", "decode_tokens_per_second"))
    assert shares[0]["decode"] / shares[1]["decode"] == pytest.approx(speeds[0] / speeds[1])  # one function, one limit
    plain = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--roofline"])
    assert "this machine: products at" in " ".join(plain.stdout.split()) and "%" in plain.stdout
