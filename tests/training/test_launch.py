"""A run does what its launcher asked for, or stops before it writes anything; each launch file says the truth."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from hf_arch.core.errors import ConfigError
from hf_arch.recipe.recipe import Recipe
from hf_arch.training.launch import LaunchRequest, check_launch, read_request, requested_precision
from hf_arch.training.run import run_training
from tests.training.tiny import recipe_values, write_recipe

ROOT = Path(__file__).parents[2]
ACCELERATE = ROOT / "recipes" / "accelerate"
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
    monkeypatch.chdir(ROOT)
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
    values = yaml.safe_load((ROOT / named).read_text())
    assert values["zero_optimization"]["stage"] == 1


def test_the_slurm_script_is_bash() -> None:
    script = ACCELERATE / "multi_node.sbatch"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert "recipes/accelerate/multi_node.yaml" in script.read_text()


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
        ({}, {"zero_redundancy": True}, "one process"),
        ({"ACCELERATE_USE_FSDP": "true"}, {"zero_redundancy": True}, "FSDP"),
        (
            *({"ACCELERATE_USE_FSDP": "true"}, {"optim": "muon"}),
            "needs whole matrices" if hasattr(torch.optim, "Muon") else "needs torch 2.9",
        ),
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


MULTI_CPU = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"


def start(
    command: list[str], recipe_file: Path, folder: Path, cache: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """The command of a launch file on a run of one step."""
    words = [str(recipe_file) if word == "RECIPE" else str(folder) if word == "FOLDER" else word for word in command]
    words += ["training.max_steps=1", "evaluation.final_sequences=2", "evaluation.speed=false"]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "HF_ARCH_"))}
    known |= {"HF_ARCH_CACHE": cache, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**known, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def launched(text: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = str(tmp_path_factory.getbasetemp() / "cache")
    values = {"per_device_train_batch_size": 2}
    recipe_file = write_recipe(tmp_path, text, training=values)

    def run(command: list[str], **environment: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        return start(command, recipe_file, tmp_path / "run", cache, environment), tmp_path / "run"

    return run


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "strategy", "processes"), [("cpu", "single", 1), ("cpu_ddp", "ddp", 2), ("cpu_fsdp2", "fsdp2", 2)]
)
def test_the_command_in_the_head_of_a_file_runs_what_the_file_is_called(
    launched: Any, name: str, strategy: str, processes: int
) -> None:
    environment, words = head_command(ACCELERATE / f"{name}.yaml")
    done, folder = launched(["accelerate.commands.launch", *words], **environment)
    assert done.returncode == 0, done.stderr[-4000:]
    launch = yaml.safe_load((folder / "results.json").read_text())["launch"]
    assert (launch["processes"], launch["strategy"], launch["device"]) == (processes, strategy, "cpu")
    assert f"{processes} process" in done.stdout and (processes == 1 or strategy.upper() in done.stdout)
    assert yaml.safe_load((folder / "experiment_config.json").read_text())["run"]["launch"] == launch


@pytest.mark.distributed
def test_the_command_line_starts_several_processes_itself(launched: Any) -> None:
    done, folder = launched(["hf_arch", "train", "RECIPE", "--output-dir", "FOLDER", "--distributed", "always"])
    assert done.returncode == 0, done.stderr[-4000:]
    launch = yaml.safe_load((folder / "results.json").read_text())["launch"]
    assert (launch["processes"], launch["strategy"]) == (2, "ddp")


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu_fsdp2", "set HF_ARCH_CPU_FSDP=1"), ("multi_cpu", "several processes were requested")],
)
def test_what_accelerate_would_not_do_stops_in_one_line(
    launched: Any, tmp_path: Path, name: str, expected: str
) -> None:
    """Before training, with nothing written, and told by one process alone."""
    file = ACCELERATE / f"{name}.yaml"
    if name == "multi_cpu":
        file = tmp_path / "multi_cpu.yaml"
        file.write_text(MULTI_CPU)
    words = ["--config_file", str(file), "scripts/train.py", "RECIPE", "--output-dir", "FOLDER"]
    done, folder = launched(["accelerate.commands.launch", *words])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(errors) == 1 and expected in errors[0]
    assert not folder.exists()
