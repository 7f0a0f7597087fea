"""`hf-arch plan`: what fits on GPUs that are not here, in which way, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_arch
from hf_arch.cli.plan import plan_capacity, to_json
from hf_arch.cli.root import app
from hf_arch.core.errors import ConfigError
from hf_arch.experiments.planning import devices
from hf_arch.experiments.planning.capacity import Capacity, Cluster
from hf_arch.experiments.planning.devices import MEMORY_GB, find_gpu
from hf_arch.training.peak_flops import GPU_TFLOPS

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 256}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    values: dict[str, Any] = {
        "model": {"architecture": "llama", **SIZES},
        "data": {"sequence_length": 64, "tokenizer": "byte"},
        "training": {"max_steps": 100, "per_device_train_batch_size": 8},
        "experiment": {"runs": {"llama": {}, "gla": {"model.architecture": "gla"}}, "seeds": 2},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def plan(recipe: Path, count: int = 8, nodes: int = 1, *overrides: str, gpu: str = "H100", **options: Any) -> Capacity:
    arguments = {"mfu": 0.4, "price": None, **options}
    cluster = (gpu, count, nodes)
    return plan_capacity(str(recipe), overrides, None, "llama", cluster, arguments["mfu"], arguments["price"])[1][0]


def small_gpu(monkeypatch: pytest.MonkeyPatch, megabytes: float) -> None:
    monkeypatch.setitem(devices.MEMORY_GB, "H100", megabytes / 1000)


def test_each_strategy_shares_out_what_it_says(recipe: Path) -> None:
    planned = plan(recipe)
    weights = 4 * planned.params
    ddp, zero1, fsdp2, tensor = (placed.parts for placed in planned.placements)
    assert ddp["optimizer"] == 2 * weights and ddp["communication buffers"] == weights
    assert zero1["optimizer"] == pytest.approx(ddp["optimizer"] / 8, abs=1) and zero1["weights"] == ddp["weights"]
    assert fsdp2["weights"] == pytest.approx(ddp["weights"] / 8, abs=1) and fsdp2["ffn"] == ddp["ffn"]
    assert planned.placements[3].group == 4  # of eight devices, as many as there are heads
    assert tensor["ffn"] == pytest.approx(ddp["ffn"] / 4, abs=1)
    rest = "embeddings, norms, residuals"
    assert tensor[rest] == ddp[rest]
    assert planned.placements[3].setting.accumulation == 4  # the same global batch by a quarter of the groups
    assert all(placed.total == sum(placed.parts.values()) and placed.fits for placed in planned.placements)
    assert planned.nearest is None


def test_gradients_are_all_there_while_they_are_accumulated(recipe: Path) -> None:
    once, twice = plan(recipe, 1), plan(recipe, 1, 1, "training.gradient_accumulation_steps=2")
    assert once.placements[0].parts["gradients"] < 4 * once.params == twice.placements[0].parts["gradients"]
    assert once.placements[0].parts.get("communication buffers") is None
    assert twice.tokens_per_step == 2 * once.tokens_per_step


def test_time_and_cost_follow_from_the_stated_mfu(recipe: Path) -> None:
    planned = plan(recipe, 8, 1, mfu=0.5, price=3.0)
    flops = hf_arch.cost(hf_arch.config_from_dict({"architecture": "llama", **SIZES}), 64).flops_per_token_train
    assert planned.precision == "bf16"
    assert planned.tokens == 100 * 8 * 8 * 64
    assert planned.tokens_per_second == pytest.approx(0.5 * 8 * 989.4e12 / flops, rel=1e-6)
    assert planned.seconds == pytest.approx(planned.tokens / planned.tokens_per_second)
    assert planned.cost == pytest.approx(planned.seconds * 8 / 3600 * 3.0)
    half = plan(recipe, 8, 1, "training.precision=fp32")
    assert half.tokens_per_second < planned.tokens_per_second / 5
    values = yaml.safe_load(recipe.read_text())
    del values["training"]["max_steps"]
    by_epochs = recipe.with_name("epochs.yaml")
    by_epochs.write_text(yaml.safe_dump(values))
    epochs = plan(by_epochs, 8, 1)
    assert epochs.tokens is epochs.seconds is epochs.cost is None


@pytest.mark.rest
def test_the_nearest_that_fits_keeps_the_batch(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = plan(recipe, 1).placements[0].total / 1e6
    small_gpu(monkeypatch, 0.8 * needed)
    planned = plan(recipe, 1)
    assert not planned.placements[0].fits
    assert planned.nearest is not None and planned.nearest.fits
    setting = planned.nearest.setting
    assert setting.batch * setting.accumulation == 8
    assert setting.checkpointing or setting.batch < 8
    small_gpu(monkeypatch, 0.01)
    assert plan(recipe, 1).nearest is None


@pytest.mark.rest
def test_every_distinct_run_is_planned_once(recipe: Path) -> None:
    cluster, plans = plan_capacity(str(recipe), [], None, None, ("h100", 2, 1), 0.4, None)
    assert {planned.name for planned in plans} == {"llama", "gla"}
    document = json.loads(json.dumps(to_json(cluster, plans), allow_nan=False))
    assert document["gpu"] == "H100" and any(
        run["placements"][0]["parts"].get("mixer GLA", 0) > 0 for run in document["runs"]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpu", "H10"], ("--gpu", "'H10'", "nearest", "H100", "allowed")),
        (["--gpu", "TPU"], ("--gpu", "'TPU'", "allowed")),
        (["--count", "0"], ("--count", "at least 1", "got 0")),
        (["--nodes", "0"], ("--nodes", "at least 1")),
        (["--count", "10", "--nodes", "4"], ("--count", "10", "nearest: 8")),
        (["--mfu", "1.5"], ("--mfu", "1.5")),
        (["--price", "-1"], ("--price", "-1")),
        (["--run", "lama"], ("--run", "'lama'", "'llama'")),
        (["--gpu", "V100", "training.precision=bf16"], ("training.precision", "V100", "nearest: 'fp16'")),
    ],
)
def test_mistakes_are_one_line(
    recipe: Path, arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["plan", str(recipe), *arguments])
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == ""
    (line,) = shown.err.splitlines()
    assert all(word in line for word in words), line


def test_the_table_shows_parts_strategies_and_what_does_not_fit(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_gpu(monkeypatch, 4.0)
    with pytest.raises(SystemExit) as ended:
        app(["plan", str(recipe), "--run", "llama", "--count", "2"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "ddp",
        "zero1",
        "fsdp2",
        "tp 2",
        "mixer Attention",
        "total",
        "assumed MFU of 40%",
        "nearest that fits",
    ):
        assert words in text, text


def test_gpus_are_found_whatever_their_case_and_have_a_peak() -> None:
    assert find_gpu("rtx-4090").name == "RTX 4090" and find_gpu("h100").memory == 80e9
    assert set(MEMORY_GB) == set(GPU_TFLOPS)
    assert find_gpu("T4").precision("auto") == "fp32" and find_gpu("A100").precision("auto") == "bf16"
    with pytest.raises(ConfigError, match="--count"):
        Cluster(find_gpu("H100"), 0)
