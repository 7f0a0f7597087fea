"""`hf-arch check`: a whole mixer passes, and each way of breaking one is found under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import hf_arch
from hf_arch.checks import CheckResult, check_model
from hf_arch.cli import app
from hf_arch.cli.new import new_files
from hf_arch.core.errors import ConfigError
from hf_arch.file_checks import check_file
from hf_arch.layers.cost import MixerCost
from hf_arch.layers.mixers.gla import GatedLinearAttention

MIXER = Path(__file__).parents[1] / "recipes" / "new_mixer" / "moving_average.py"
# The line that is broken, what it becomes, and the invariants that must fail for it.
FAULTS = {
    "looks_ahead": ("self.in_proj(x).float()", "self.in_proj(x + x.mean(1, keepdim=True)).float()", {"causality"}),
    "forgets": ("initial_state=state.recurrent()", "initial_state=None", {"chunks with a cache", "steps with a cache"}),
    "fades_at_padding": ("layout.zero_padding(1 - decay)", "1 - decay", {"right padding"}),
    "runs_on": ("segment_ids=layout.segment_ids", "segment_ids=None", {"packed documents", "packed gradients"}),
    "idle": ("torch.sigmoid(self.decay.float())", "torch.sigmoid(self.decay.detach())", {"every parameter learns"}),
    "miscounts": ("4 * self.inner", "2 * self.inner", {"cost"}),
    "pays_nothing": ("state_bytes=4 * self.inner", "decode_flops=-1e9, state_bytes=4 * self.inner", {"FLOPs"}),
    "pays_too_much": ("state_bytes=4 * self.inner", "decode_flops=1e9, state_bytes=4 * self.inner", {"FLOPs"}),
    "unseeded": (
        "torch.linspace(0.5, 0.99, self.inner)",
        "torch.tensor([random.random() for _ in range(self.inner)])",
        {"seeded start"},
    ),
    "noisy": ("self.in_proj(x).float()", "self.in_proj(x + 1e-5 * torch.rand_like(x)).float()", {"same twice"}),
    "remembers": (
        "        state.write_recurrent(last)",
        "        self.calls = getattr(self, 'calls', 0) + 1\n"
        "        averages = averages * self.calls\n        state.write_recurrent(last)",
        {"same twice"},
    ),
    "sees_rows": ("self.in_proj(x).float()", "self.in_proj(x - x.mean(0)).float()", {"rows apart"}),
    "sees_ahead_in_training": (
        "self.in_proj(x).float()",
        "self.in_proj(x + x.mean(1, keepdim=True) * self.training).float()",
        {"training as evaluation"},
    ),
    "raises": ("state.write_recurrent(last)", "state.write_recurrent(last, 'no')", {"beam search"}),
}


def broken(folder: Path, name: str, registered: str | None = None) -> Path:
    """The example with one fault, registered by the name of the fault, or another one."""
    line, fault, _ = FAULTS[name]
    source = MIXER.read_text()
    assert source.count(line) == 1
    path = folder / f"{name}.py"
    source = source.replace("import torch\n", "import random\n\nimport torch\n", 1)
    path.write_text(
        source.replace(line, fault).replace('register("moving_average")', f'register("{registered or name}")')
    )
    return path


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_under_its_name(name: str, tmp_path: Path) -> None:
    [(checked, results)] = check_file(broken(tmp_path, name)).items()
    assert checked == name
    failed = {result.name for result in results if not result.passed}
    assert failed >= FAULTS[name][2]
    assert "save and load" not in failed or name == "noisy"  # which no two models agree on
    assert all(result.hint for result in results if not result.passed)


def test_a_hook_that_speaks_of_its_own_model_is_no_fault(tmp_path: Path) -> None:
    """The invariants run on copies, which such a hook would take to the parameters of the original."""
    path = tmp_path / "hooked.py"
    source = MIXER.read_text().replace('register("moving_average")', 'register("hooked")')
    source = source.replace(
        "        self.decay = nn.Parameter(torch.empty(self.inner))\n",
        "        self.decay = nn.Parameter(torch.empty(self.inner))\n"
        "        self.gain = nn.Parameter(torch.empty(self.inner))\n"
        "        self.in_proj.register_forward_hook(lambda module, given, out: out * self.gain)\n",
    )
    path.write_text(source.replace("        init.copy_", "        init.constant_(self.gain, 1.0)\n        init.copy_"))
    [results] = check_file(path).values()
    assert [result for result in results if not result.passed] == []


def test_the_command_says_where_to_look(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(broken(tmp_path, "runs_on", "mine"))])
    assert done.exit_code == 1
    assert "packed documents: a state runs on into the next document" in done.output
    assert CliRunner().invoke(app, ["check", "retnet"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gal"], "neither a Python file nor an architecture"),
        (["gla", "use_short_cnv=true"], "unknown key 'use_short_cnv'; nearest: 'use_short_conv'"),
        (["nothing.py"], "no file at 'nothing.py'"),
    ],
)
def test_a_wrong_word_is_one_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["check", *arguments])
    assert done.exit_code == 2
    assert message in done.output and done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "fault", "message"),
    [
        (
            "import torch\n",
            "import torche\n",
            r"^plugin: .*wrong.py: line 10: ModuleNotFoundError: No module named 'torche'$",
        ),
        ("expand: int = 1", "expand: int", r"MovingAverageOptions: the option 'expand' has no default"),
        ("@options\n", "", r"MovingAverage.Options: MovingAverageOptions is not decorated with @options"),
        ('ClassVar = "recurrent"', 'ClassVar = "recurent"', r"MovingAverage.cache_kind: .* nearest: 'recurrent'"),
    ],
)
def test_a_file_that_cannot_be_a_mixer_is_one_line(line: str, fault: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    source = MIXER.read_text()
    assert source.count(line) == 1
    path.write_text(source.replace(line, fault).replace('register("moving_average")', 'register("wrong")'))
    with pytest.raises(ConfigError, match=message):
        check_file(path)


def test_a_mixer_that_does_not_run_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "does_not_run.py"
    source = MIXER.read_text().replace('register("moving_average")', 'register("does_not_run")')
    fault = "self.in_proj(x[..., :3])"
    path.write_text(source.replace("self.in_proj(x)", fault))
    [[result]] = check_file(path).values()
    assert result.name == "forward" and "cannot be multiplied" in result.found
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if fault in text)
    assert result.hint == f"raised at line {line} of your file, or by what that line calls"


def test_a_file_without_a_mixer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.py"
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="registers nothing new that can be checked"):
        check_file(path)


def _failed(results: list[CheckResult]) -> dict[str, str]:
    return {result.name: result.found for result in results if not result.passed}


def test_a_matrix_state_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = GatedLinearAttention.cost
    monkeypatch.setattr(
        GatedLinearAttention, "cost", lambda self, seq_len: MixerCost(state_bytes=cost(self, seq_len).state_bytes)
    )
    found = _failed(check_model(hf_arch.tiny_config("gla")))
    assert list(found) == ["FLOPs"] and "matrix states" in found["FLOPs"]


def test_another_reference_is_a_failure(tmp_path: Path) -> None:
    files = new_files("mixer", "referred")
    right = "average = decay * average + (1 - decay) * token"
    assert right in files["referred.py"]
    (tmp_path / "referred.py").write_text(files["referred.py"].replace(right, "average = decay * average + token"))
    assert list(_failed(check_file(tmp_path / "referred.py")["referred"])) == ["reference"]


@pytest.mark.rest
def test_rounding_is_not_accused(tmp_path: Path) -> None:
    """A mixer that multiplies by 3e3 and divides again after a cancellation: wrong by 1e-3 in fp32, right in fp64."""
    text = new_files("mixer", "rounding")["rounding.py"]
    plain, coarse = "self.out_proj(averages.to(x.dtype))", "self.out_proj(_coarse(averages).to(x.dtype))"
    assert text.count(plain) == 1
    text = text.replace(plain, coarse).replace(".float()", ".to(torch.promote_types(x.dtype, torch.float32))")
    text += "\n\ndef _coarse(x: Tensor) -> Tensor:\n    return (x + 3e3 * x.shape[1]) - 3e3 * x.shape[1]\n"
    (tmp_path / "rounding.py").write_text(text)
    results = {result.name: result for result in check_file(tmp_path / "rounding.py")["rounding"]}
    steps = results["steps with a cache"]
    assert steps.passed and "rounding in fp32 differs by" in steps.found


def test_overrides_reach_the_models_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "changed.py").write_text(new_files("ffn", "changed")["changed.py"])
    with pytest.raises(ConfigError, match="num_attention_heads"):
        check_file(tmp_path / "changed.py", {"num_attention_heads": 7})


@pytest.mark.parametrize(
    ("line", "fault", "name"),
    [
        ("rng.integers(0, vocab_size, (examples", "rng.integers(0, vocab_size + 1, (examples", "rows"),
        ("labels[:, distance:] = inputs[:, :-distance]", "pass", "answers"),
        ("    inputs = rng.", "    rng = np.random.default_rng()\n    inputs = rng.", "same seed, same rows"),
        ("    inputs = rng.", "    rng = np.random.default_rng(0)\n    inputs = rng.", "other seed, other rows"),
        ("= inputs[:, :-distance]", "= 3", "chance is not enough"),
    ],
)
def test_a_fault_of_a_probe_is_found(line: str, fault: str, name: str, tmp_path: Path) -> None:
    probe = f"faulty_{'_'.join(name.replace(',', '').split())}"
    text = new_files("probe", probe)[f"{probe}.py"]
    assert text.count(line) == 1
    (tmp_path / f"{probe}.py").write_text(text.replace(line, fault))
    assert list(_failed(check_file(tmp_path / f"{probe}.py")[probe]))[:1] == [name]
