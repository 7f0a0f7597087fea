"""The promise: a mixer written in one file of the user's own is trained, generated from, counted, saved and loaded
again."""

from __future__ import annotations

import os
import shutil
import textwrap

import pytest
import torch
from transformers import AutoModelForCausalLM

import hf_arch
from hf_arch.checks import INVARIANTS, check_model
from hf_arch.core.registry import load_plugin
from tests.fresh import ROOT

MIXER = ROOT / "recipes" / "new_mixer" / "moving_average.py"


@pytest.fixture(scope="module")
def mixer_file(tmp_path_factory):
    path = shutil.copy(MIXER, tmp_path_factory.mktemp("mine"))
    load_plugin(path)
    return path


@pytest.fixture
def config(mixer_file):
    return hf_arch.tiny_config("mixed", mixer=["moving_average", {"type": "moving_average", "expand": 2}, "attention"])


def test_trains(config):
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([5, 17, 60, 42] * 6)[None]
    losses = []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_keeps_the_invariants(config):
    results = check_model(config)
    assert len(results) == len(INVARIANTS)
    assert [result for result in results if not result.passed] == []


def test_is_counted_and_described(config):
    model = AutoModelForCausalLM.from_config(config)
    cost = hf_arch.cost(config, 16)
    assert cost.params_total == model.num_parameters()
    name, _ = hf_arch.describe(config)
    assert name.startswith("4L-4H-32D-2xEMA+Attn")


def test_a_wrong_option_is_named(mixer_file):
    with pytest.raises(hf_arch.core.errors.ConfigError, match="unknown key 'expnd'; nearest: 'expand'"):
        hf_arch.config_from_dict(
            {
                "architecture": "mixed",
                "plugins": [str(mixer_file)],
                "mixer": {"type": "moving_average", "expnd": 2},
            }
        )


def test_saves_and_loads_in_a_new_process(config, mixer_file, tmp_path, fresh):
    model, ids = AutoModelForCausalLM.from_config(config).eval(), torch.arange(3, 12)[None]
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids).logits.sum().item()
    code = textwrap.dedent(
        f"""
        import torch, hf_arch
        from transformers import AutoModelForCausalLM
        torch.set_num_threads(1)
        with torch.no_grad():
            print(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})(torch.arange(3,
            12)[None]).logits.sum().item())
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ARCH_PLUGINS": str(mixer_file)}
    done = fresh(code, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == expected
