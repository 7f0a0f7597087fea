"""The promise: a mixer written in one file of the user's own is trained, generated from, counted, saved and loaded
again."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import hf_arch
from hf_arch.registry import load_plugin

MIXER = '''
"""Exponential moving average: h_t = a h_{t-1} + (1 - a) W x_t with a learned decay a channel."""

from typing import ClassVar

import torch
from torch import nn
from transformers import initialization as init

from hf_arch.mixers.base import MixerCost, RecurrentMixer
from hf_arch.ops.elementwise import hgrn_scan
from hf_arch.options import Options, options
from hf_arch.registry import MIXERS


@options
class AverageOptions(Options):
    expand: int = 1


@MIXERS.register("moving_average")
class MovingAverage(RecurrentMixer):
    Options = AverageOptions
    cache_kind: ClassVar = "recurrent"
    label: ClassVar[str] = "EMA"
    no_weight_decay: ClassVar[tuple[str, ...]] = ("decay",)

    def __init__(self, config, options, layer_idx):
        super().__init__(config, options, layer_idx)
        self.inner = options.expand * config.hidden_size
        self.in_proj = nn.Linear(config.hidden_size, self.inner, bias=False)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=False)
        self.decay = nn.Parameter(torch.empty(self.inner))

    def init_weights(self):
        init.constant_(self.decay, 2.0)

    def mix(self, x, layout, state, **context):
        decay = torch.sigmoid(self.decay.float()).expand(*x.shape[:2], -1)
        keep = layout.zero_padding(1 - decay)  # nothing decays at padding
        inputs = keep * self.in_proj(x).float()
        out, final = hgrn_scan(
            inputs, 1 - keep, initial_state=state.recurrent(), output_final_state=bool(state),
            segment_ids=layout.segment_ids
        )
        state.write_recurrent(final)
        return self.out_proj(out.to(x.dtype))

    def cost(self, seq_len):
        return MixerCost(state_bytes=4 * self.inner)
'''


@pytest.fixture(scope="module")
def mixer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("mine") / "moving_average.py"
    path.write_text(MIXER)
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


@torch.no_grad()
def test_keeps_the_invariants(config):
    model, ids = AutoModelForCausalLM.from_config(config).eval(), torch.randint(3, 97, (2, 15))
    whole = model(ids, use_cache=False).logits
    cache = DynamicCache(config=config)
    chunks = torch.cat([model(part, past_key_values=cache).logits for part in ids.split([6, 1, 8], 1)], 1)
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-5)
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    right = model(ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(right[0, :9], whole[0, :9], rtol=0, atol=1e-5)
    positions = torch.cat([torch.arange(7), torch.arange(8)])[None].expand(2, -1)
    packed = model(ids, position_ids=positions, use_cache=False).logits
    separate = torch.cat([model(part, use_cache=False).logits for part in ids.split([7, 8], 1)], 1)
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-5)
    options = {"max_new_tokens": 5, "num_beams": 3, "eos_token_id": None}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_is_counted_and_described(config):
    model = AutoModelForCausalLM.from_config(config)
    cost = hf_arch.cost(config, 16)
    assert cost.params_total == model.num_parameters()
    name, _ = hf_arch.describe(config)
    assert name.startswith("4L-4H-32D-2xEMA+Attn")


def test_a_wrong_option_is_named(mixer_file):
    with pytest.raises(hf_arch.errors.ConfigError, match="unknown key 'expnd'; nearest: 'expand'"):
        hf_arch.config_from_dict(
            {
                "architecture": "mixed",
                "plugins": [str(mixer_file)],
                "mixer": {"type": "moving_average", "expnd": 2},
            }
        )


def test_saves_and_loads_in_a_new_process(config, mixer_file, tmp_path):
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
    environment = {**__import__("os").environ, "HF_ARCH_PLUGINS": str(mixer_file)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == expected
