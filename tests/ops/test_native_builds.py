"""How the sources of the C kernels are built: each by itself, once, and what happens where one cannot be."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_arch.core.one_writer import only_writer
from hf_arch.ops import (
    attention,
    conv,
    experts,
    gelu,
    logsumexp,
    native,
    native_delta,
    native_ssd,
    norm,
    one_row,
    rotary,
    rwkv7,
    selective_scan,
    silu_gate,
    token_mix,
    vector_decay,
)
from hf_arch.ops.native import Kernels
from hf_arch.ops.rotary import apply_rotary
from hf_arch.ops.silu_gate import silu_gated
from tests.ops.test_native import needs_kernels
from tests.suite.models import perturbed_model, token_ids

OPERATORS = (
    *(
        conv,
        experts,
        gelu,
        logsumexp,
        native_delta,
        native_ssd,
        norm,
        one_row,
        rotary,
        rwkv7,
        selective_scan,
        silu_gate,
    ),
    *(token_mix, vector_decay),
)
HELD = {operator.KERNELS.source: operator.KERNELS for operator in OPERATORS}
HELD |= {kernels.source: kernels for kernels in attention.KERNELS.values()}
MODELS = {
    "llama": {"norm.c", "rotary.c", "pointwise.c"},
    "gpt2": {"gelu.c"},
    "moe": {"norm.c", "rotary.c", "experts.c"},
    "gla": {"causal_conv.c", "norm.c", "pointwise.c", "vector_decay.c"},
    "mamba2": {"causal_conv.c", "norm.c", "ssd.c"},
    "mamba": {"causal_conv.c", "norm.c", "selective_scan.c"},
    "delta_net": {"causal_conv.c", "delta_rule.c", "norm.c", "pointwise.c"},
}
X = torch.linspace(-2, 2, 48).view(1, 2, 3, 8)


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that has asked for no kernel yet; afterwards none of the test's is left."""
    for kernels in HELD.values():
        monkeypatch.delitem(vars(kernels), "library", raising=False)
    monkeypatch.setattr(native, "_unbuilt", set())
    yield
    for kernels in HELD.values():
        vars(kernels).pop("library", None)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unasked: None) -> Iterator[Path]:
    """Of a machine that has built none yet."""
    monkeypatch.setattr(native, "_nothing_is_kept", False)  # as a dry run before it in this process may have left it
    monkeypatch.setenv("HF_ARCH_CACHE", str(tmp_path))
    compiler = native.compiler  # which a test may replace
    compiler.cache_clear()
    yield tmp_path / "kernels"
    compiler.cache_clear()


@pytest.fixture
def builds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is built, in order. A build takes a while, and nothing is compiled."""
    built: list[Path] = []

    def build(command: list[str], texts: dict[str, str], target: Path) -> None:
        built.append(target)
        time.sleep(0.2)
        target.write_text("")

    monkeypatch.setattr(native, "_build", build)
    monkeypatch.setattr("ctypes.CDLL", lambda name: Path(name))
    monkeypatch.setattr(native, "compiler", lambda: (["cc"], "a compiler"))
    return built


def with_gradient(function: Any, *inputs: Tensor) -> list[Tensor]:
    """An output and the gradient of its sum."""
    given = inputs[0].clone().requires_grad_()
    y = function(given, *inputs[1:])
    return [y.detach(), torch.autograd.grad(y.square().sum(), given)[0]]


def rotated() -> list[Tensor]:
    angles = torch.linspace(0, 3, 24).view(1, 3, 8)
    return with_gradient(apply_rotary, X, angles.cos(), angles.sin())


def test_every_source_has_an_operator_that_holds_it() -> None:
    assert set(HELD) == {name for name in native.SOURCES if name.endswith(".c")}


@needs_kernels
@pytest.mark.usefixtures("unasked")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_asks_for_the_kernels_of_its_own_operators(name: str) -> None:
    ids = token_ids()
    perturbed_model(name).train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert {source for source, kernels in HELD.items() if "library" in vars(kernels)} == MODELS[name]


@needs_kernels
def test_a_source_is_built_without_the_others(cache: Path) -> None:
    rotated()
    (built,) = (path for path in cache.rglob("*") if path.is_file())
    assert built.parent == cache / "rotary" and built.suffix == ".so"


@needs_kernels
def test_a_source_that_cannot_be_built_leaves_the_others(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(native.SOURCES, "rotary.c", "no C\n")
    found = rotated(), rotated()
    with_gradient(silu_gated, X, X)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().startswith("rotary.c could not be built")
    assert "\n" not in record.getMessage() and not native.all_built()
    assert rotary.KERNELS.library is None and silu_gate.KERNELS.library is not None
    monkeypatch.setenv("HF_ARCH_BACKEND", "torch")
    assert all(torch.equal(x, y) for each in found for x, y in zip(each, rotated(), strict=True))


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_torch_takes_their_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    caplog.set_level(logging.INFO, logger="hf_arch.ops.native")
    assert [kernels.for_tensors(torch.randn(3)) for kernels in HELD.values()] == [None] * len(HELD)
    (record,) = caplog.records
    assert record.levelname == "INFO" and "no C compiler is installed" in record.getMessage()


@needs_kernels
@pytest.mark.usefixtures("cache")
def test_a_compiler_that_cannot_say_its_version_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "false")
    assert [kernels.for_tensors(torch.randn(3)) for kernels in HELD.values()] == [None] * len(HELD)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "false --version" in record.getMessage()


@needs_kernels
@pytest.mark.usefixtures("cache")
def test_the_compiler_says_its_version_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], subprocess.run
    monkeypatch.setattr("subprocess.run", lambda command, **how: (calls.append(command[1:]), run(command, **how))[1])
    rotated()
    with_gradient(silu_gated, X, X)
    assert calls.count(["--version"]) == 1 and len(calls) == 3


def test_another_compiler_processor_or_text_is_another_build(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(source: str) -> bool:
        before = len(builds)
        assert Kernels(source).library is not None
        return len(builds) > before

    assert built("rotary.c") and built("norm.c") and not built("rotary.c")
    monkeypatch.setitem(native.SOURCES, "norm.c", "/* of another version */")
    assert built("norm.c") and not built("rotary.c")
    monkeypatch.setitem(native.SOURCES, "lanes.h", "/* of another version */")
    assert built("rotary.c") and built("norm.c") and not built("rotary.c")
    monkeypatch.setattr(native, "compiler", lambda: (["cc"], "another compiler or processor"))
    assert built("rotary.c") and not built("rotary.c")


@needs_kernels
@pytest.mark.usefixtures("cache")
def test_the_identity_of_a_build_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.compiler()
    native.compiler.cache_clear()
    monkeypatch.setattr(native, "_processor", lambda: "another")
    after = native.compiler()
    assert before is not None and after is not None and before[0] == after[0] and before[1] != after[1]


def test_one_builds_and_the_others_wait(builds: list[Path]) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = set(threads.map(lambda _: Kernels("rotary.c").library, range(4)))
    assert len(builds) == 1 and found == set(builds)


def test_nobody_waits_for_ever(cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_SECONDS", 0.2)
    folder = cache / "rotary"
    folder.mkdir(parents=True)
    with only_writer(folder, wait=False) as alone:
        assert alone and Kernels("rotary.c").library == builds[0]


def test_a_dry_run_leaves_no_file(cache: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_nothing_is_kept", True)
    assert Kernels("rotary.c").library == builds[0] and not builds[0].exists() and not cache.exists()
    monkeypatch.setattr(native, "_nothing_is_kept", False)
    kept = Kernels("rotary.c").library
    monkeypatch.setattr(native, "_nothing_is_kept", True)
    assert Kernels("rotary.c").library == kept == builds[1] and len(builds) == 2
