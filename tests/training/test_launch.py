"""A run does what its launcher asked for, or stops before it writes anything; each launch file says the truth."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from hf_arch.errors import ConfigError
from hf_arch.experiments.recipe import Recipe
from hf_arch.training.launch import LaunchRequest, check_launch, read_request, requested_precision
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values

ACCELERATE = Path(__file__).parents[2] / "recipes" / "accelerate"
FILES = sorted(ACCELERATE.glob("*.yaml"))
NAMES = {"cpu", "cpu_ddp", "cpu_fsdp2", "single_gpu", "ddp", "fsdp2", "fsdp2_offload", "zero1", "multi_node"}
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0"}
BY_ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


def head_command(path: Path) -> tuple[dict[str, str], list[str]]:
    """(environment, arguments after `accelerate launch`) of the command in the head of a launch file."""
    line = next(line for line in path.read_text().splitlines() if line.startswith("# Run: "))
    words = shlex.split(line.removeprefix("# Run: ").split("&&")[-1])
    start = words.index("accelerate")
    assert words[start + 1] == "launch"
    return dict(word.split("=", 1) for word in words[:start]), words[start + 2 :]


def test_every_way_to_launch_has_a_file() -> None:
    assert {path.stem for path in FILES} == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_takes_the_file_and_its_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ACCELERATE.parents[1])
    config = load_config_from_file(str(path))
    assert isinstance(config, ClusterConfig)
    environment, words = head_command(path)
    parser = launch_command_parser()
    given = parser.parse_args([word.replace("RANK", "1") for word in words])
    assert given.config_file == f"recipes/accelerate/{path.name}" and given.training_script == "scripts/train.py"
    assert given.training_script_args == ["RECIPE", "--output-dir", "FOLDER"]
    options = {action.dest for action in parser._actions}
    assert set(config.fsdp_config) <= options  # an option that the launcher does not have would be dropped in silence
    assert set(config.deepspeed_config) <= options
    args, _, _ = _validate_launch_command(given)
    sharded = config.distributed_type.value
    assert (args.use_fsdp, args.use_deepspeed) == (sharded == "FSDP", sharded == "DEEPSPEED")
    # One process, or one of the launchers that really start several.
    assert args.num_processes == 1 or args.use_fsdp or args.use_deepspeed or args.multi_gpu
    assert environment == {
        "cpu_ddp": {"ACCELERATE_USE_CPU": "true"},
        "cpu_fsdp2": {"ACCELERATE_USE_CPU": "true", "HF_ARCH_CPU_FSDP": "1"},
    }.get(path.stem, {})


def test_fsdp_files_differ_in_the_device_alone() -> None:
    gpu, cpu = (yaml.safe_load((ACCELERATE / f"{name}.yaml").read_text()) for name in ("fsdp2", "cpu_fsdp2"))
    assert gpu["fsdp_config"] == cpu["fsdp_config"]


def test_the_deepspeed_file_is_stage_1_of_what_zero1_names() -> None:
    named = yaml.safe_load((ACCELERATE / "zero1.yaml").read_text())["deepspeed_config"]["deepspeed_config_file"]
    values = yaml.safe_load((ACCELERATE.parents[1] / named).read_text())
    assert values["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize(
    ("environment", "request_of"),
    [
        ({}, LaunchRequest()),
        (TORCHRUN, LaunchRequest(processes=2)),
        (BY_ACCELERATE, LaunchRequest(cpu=True)),
        ({**BY_ACCELERATE, "MASTER_ADDR": "127.0.0.1"}, LaunchRequest(cpu=True, lost_processes=True)),
        ({"MASTER_ADDR": "127.0.0.1"}, LaunchRequest()),
        (
            {**TORCHRUN, "MASTER_ADDR": "x", "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true"},
            LaunchRequest(processes=2, fsdp=True, precision="bf16"),
        ),
        ({**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"}, LaunchRequest(processes=2)),
    ],
)
def test_the_environment_says_what_was_asked(environment: dict[str, str], request_of: LaunchRequest) -> None:
    assert read_request(environment) == request_of


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_copies_that_do_not_know_of_each_other_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: 4 copies"):
        read_request({name: "4"})


@pytest.mark.parametrize(
    ("mode", "request_of", "expected"),
    [
        ("always", LaunchRequest(lost_processes=True), "cpu_ddp.yaml"),
        ("auto", LaunchRequest(lost_processes=True), "several processes"),
        ("never", LaunchRequest(processes=2), "'never' but 2 processes"),
        ("sometimes", LaunchRequest(), "allowed: always, auto, never"),
    ],
)
def test_a_launch_that_is_not_what_was_asked_is_refused(mode: str, request_of: LaunchRequest, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        check_launch(request_of, mode)


def test_the_launcher_may_choose_the_precision_that_the_recipe_leaves_open() -> None:
    bf16 = LaunchRequest(precision="bf16")
    assert requested_precision({}, bf16).name == "bf16"
    assert requested_precision({"precision": "bf16"}, bf16).name == "bf16"
    assert requested_precision({"precision": "fp32"}, LaunchRequest()).name == "fp32"
    with pytest.raises(ConfigError, match="'fp32' but the launcher says mixed_precision 'bf16'"):
        requested_precision({"precision": "fp32"}, bf16)
    with pytest.raises(ConfigError, match="the launcher says 'fp8'"):
        requested_precision({}, LaunchRequest(precision="fp8"))


@pytest.mark.parametrize(
    ("environment", "training", "expected"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, {}, "HF_ARCH_CPU_FSDP=1"),
        ({}, {"fsdp": "full_shard"}, "recipes/accelerate/fsdp2.yaml"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed"),
        ({**BY_ACCELERATE, "ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "training.precision: 'fp32'"),
        ({"PMI_SIZE": "2"}, {}, "PMI_SIZE"),
    ],
)
def test_what_would_not_be_done_is_refused_before_anything_is_written(
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    training: dict[str, Any],
    expected: str,
) -> None:
    if torch.cuda.is_available():
        pytest.skip("what a machine without a GPU cannot do")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        run_training(Recipe.from_dict(recipe_values(text, training=training)), tmp_path / "run", quiet=True)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_probe_is_learned_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    probe = Recipe.from_dict({"model": {"architecture": "llama"}, "probe": {"task": "mqar"}})
    with pytest.raises(ConfigError, match="probe: is learned by one process, and 2 were launched"):
        run_training(probe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_ran(finished: Path) -> None:
    results = yaml.safe_load((finished / "results.json").read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    expected = {"processes": 1, "strategy": "single", "sharded": "nothing", "backend": None}
    assert results["launch"] == {**expected, "device": device, "precision": "fp32"}


def test_one_process_takes_one_gpu(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_arch.training import arguments
    from hf_arch.training.precision import Precision

    class ManyGPUs(arguments.TrainingArguments):
        @property
        def n_gpu(self) -> int:
            return getattr(self, "_n_gpu", 8) or 8

    monkeypatch.setattr(arguments, "TrainingArguments", ManyGPUs)
    args = arguments.build_arguments({"max_steps": 1}, Precision("fp32", "a test"), tmp_path, num_rows=10)
    assert args.n_gpu == 1


def test_fsdp_on_cpus_leaves_accelerate_as_it_was() -> None:
    from accelerate.state import AcceleratorState

    from hf_arch.training.cpu_fsdp import fsdp_on_cpus

    before = AcceleratorState.__init__
    with pytest.raises(RuntimeError), fsdp_on_cpus():
        assert AcceleratorState.__init__ is not before
        raise RuntimeError
    assert AcceleratorState.__init__ is before
