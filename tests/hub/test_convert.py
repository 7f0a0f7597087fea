"""Checkpoints of transformers to ours and back, from folders as other people have them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MambaConfig

import hf_arch
from hf_arch.checkpoints.checkpoint import checkpoint_folder, load_ours, read_config, read_tensors
from hf_arch.cli.hub_commands import convert_command
from hf_arch.core.errors import ConfigError
from hf_arch.hub import convert as convert_module
from hf_arch.hub.convert import convert

from .conftest import save_tiny

FOREIGN_CONFIGS = {
    "llama": LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "mamba": MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
}  # fmt: skip


def foreign(folder: Path, name: str, **options) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FOREIGN_CONFIGS[name]).save_pretrained(folder, **options)
    return folder


def test_every_tested_type_is_one_that_can_be_converted():
    assert set(FOREIGN_CONFIGS) <= set(convert_module.FOREIGN)


@pytest.mark.parametrize("name", FOREIGN_CONFIGS)
def test_there_and_back_gives_the_same_tensors_and_prints_the_difference(name: str, tmp_path: Path, capsys):
    source = foreign(tmp_path / "theirs", name)
    (source / "tokenizer.json").write_text("{}")
    assert convert_command(str(source), str(tmp_path / "ours")) == 0
    said = capsys.readouterr().out
    assert f"{name} -> hfa_" in said and "max abs difference" in said and "logits of" in said
    assert (tmp_path / "ours" / "tokenizer.json").exists()
    assert convert_command(str(tmp_path / "ours"), str(tmp_path / "back"), name) == 0
    before, after = read_tensors(source), read_tensors(tmp_path / "back")
    assert after.keys() <= before.keys()
    for key, tensor in after.items():
        assert torch.equal(tensor, before[key]), key
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (source, tmp_path / "back")]
    assert torch.equal(*logits)


# An architecture of ours that each type can say, and what of it differs from the defaults.
SAYS = {
    **{name: (name, {}) for name in ("abc", "delta_net", "gla", "gsa", "hgrn", "hgrn2", "linear_attn", "retnet")},
    **{name: (name, {}) for name in ("gpt2", "llama", "mamba", "mamba2", "rwkv6", "rwkv7")},
    **{name: ("llama", {}) for name in ("litgpt", "mistral", "transformer")},
    **{name: (name, {}) for name in ("comba", "gdn2", "kda", "precond_kda")},
    **{name: (name, {}) for name in ("forgetting_transformer", "lightnet", "mamba3", "moba", "nsa", "rodimus")},
    "path_attn": ("path_attention", {}),
    "stickbreaking_attn": ("stickbreaking", {}),
    "gated_deltanet": ("gated_delta_net", {}),
    "gated_deltaproduct": ("gated_delta_product", {}),
    "precond_gated_deltanet": ("precond_gated_delta_net", {}),
    "deepseek_v3": ("mla", {"mixer": {"type": "mla", "latent_norm_eps": 1e-6}}),
    "mla": ("mla", {}),
    "mixtral": ("moe", {}),
    "nanogpt": ("gpt2", {"hidden_act": "gelu"}),
    "qwen3": ("llama", {"qk_norm": True}),
}


# Types that are converted from configs of their own, in both directions, by tests/interchange and tests/golden.
FROM_THEIR_SIDE = {
    *("falcon_h1", "granitemoehybrid", "hrm_text", "jamba", "kimi_linear", "nemotron_h", "olmo_hybrid"),
    *("minimax", "recurrent_gemma"),
    *("bamba", "cohere", "diffllama", "gpt_neox", "gpt_oss", "granite", "lfm2", "qwen3_5_moe_text", "qwen3_5_text"),
    *("log_linear_mamba2", "mesa_net", "momentum_deltanet", "qwen3_next", "smollm3", "yoco"),
}


def test_every_type_is_in_a_table():
    assert {*SAYS, *FROM_THEIR_SIDE} == set(convert_module.FOREIGN)


@pytest.mark.slow
@pytest.mark.parametrize("to", SAYS)
def test_a_model_of_ours_goes_to_every_type_and_back(to: str, tmp_path: Path, capsys):
    name, options = SAYS[to]
    sizes = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    values = {"architecture": name, **sizes, "max_position_embeddings": 64, **options}
    model = AutoModelForCausalLM.from_config(hf_arch.config_from_dict(values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "ours")
    assert convert_command(str(tmp_path / "ours"), str(tmp_path / "theirs"), to) == 0
    assert convert_command(str(tmp_path / "theirs"), str(tmp_path / "again")) == 0
    assert capsys.readouterr().out.count("max abs difference") == 2
    tokens = torch.randint(97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(load_ours(tmp_path / "again")(tokens).logits, model(tokens).logits)


def test_shards_are_read(tmp_path: Path):
    source = foreign(tmp_path / "theirs", "llama", max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    assert convert(source, tmp_path / "ours").agrees


def test_a_library_that_is_not_at_hand_is_checked_by_the_way_back(tmp_path: Path):
    source = save_tiny(tmp_path / "gla", "gla", mixer={"type": "gla"})
    done = convert(source, tmp_path / "theirs", "gla")
    assert done.reference == "tensors after the way back" and done.difference == 0.0
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert (done.source, done.result, done.difference) == ("gla", "hfa_gla", 0.0)
    assert all(
        torch.equal(tensor, load_file(tmp_path / "ours" / "model.safetensors")[key])
        for key, tensor in load_file(source / "model.safetensors").items()
    )


def test_names_that_a_file_has_of_its_own_are_no_difference(tmp_path: Path):
    """A checkpoint of a compiled model whose norms FLA did not fuse."""
    source = save_tiny(tmp_path / "gla", "gla", mixer={"type": "gla"})
    convert(source, tmp_path / "theirs", "gla")
    config, tensors = read_config(tmp_path / "theirs"), load_file(tmp_path / "theirs" / "model.safetensors")
    names = {key: f"_orig_mod.{key.replace('g_norm_swish_gate', 'g_norm')}" for key in tensors}
    save_file({names[key]: tensor for key, tensor in tensors.items()}, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "fuse_norm": False}))
    done = convert(tmp_path / "theirs", tmp_path / "ours")
    assert done.reference == "tensors after the way back" and done.difference == 0.0


def test_a_result_that_differs_is_not_kept(tmp_path: Path, capsys, monkeypatch):
    source = foreign(tmp_path / "theirs", "llama")
    right = convert_module.from_foreign

    def wrong(config, state):
        model = right(config, state)
        with torch.no_grad():
            model.model.norm.weight.mul_(1.1)
        return model

    monkeypatch.setattr(convert_module, "from_foreign", wrong)
    assert convert_command(str(source), str(tmp_path / "ours")) == 1
    assert "not written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def broken(tmp_path: Path, kind: str) -> Path:
    """A folder that holds a Llama with something wrong with it."""
    folder = foreign(tmp_path / "broken", "llama")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "corrupt":
        weights.write_bytes(b"\xff" * 200)
    elif kind == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "missing shard":
        weights.rename(folder / "model-00001-of-00002.safetensors")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "shard elsewhere":
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    elif kind == "config":
        config.write_text("{")
    else:
        values = json.loads(config.read_text())
        if kind == "no type":
            del values["model_type"]
        if kind in ("unknown type", "code"):
            values["model_type"] = "lama"
        if kind == "code":
            values["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
            (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        if kind == "option":
            values["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
            values["mlp_gate_scale"] = 2.0
        config.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated", "model.safetensors: damaged or cut short"),
        ("corrupt", "model.safetensors: damaged or cut short"),
        ("pickle", "pytorch_model.bin: a pickle can run code when it is read"),
        ("no weights", "model.safetensors: no such file"),
        ("missing shard", "model-00002-of-00002.safetensors: no such file"),
        ("shard elsewhere", "names a file outside its folder"),
        ("config", "config.json: not valid JSON"),
        ("no type", "config.json: no `model_type`"),
        ("unknown type", "model_type: 'lama' is not known; nearest: 'llama'"),
        ("code", "brings its own code, which is not run"),
        ("option", "'mlp_gate_scale' is not an option of llama"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_one_line_and_runs_nothing(kind: str, expected: str, tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        convert(broken(tmp_path, kind), tmp_path / "ours")
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_wrong_requests_are_told(tmp_path: Path):
    ours = save_tiny(tmp_path / "ours", "llama", position="alibi", qk_norm=False)
    theirs = foreign(tmp_path / "theirs", "llama")
    for arguments, expected in (
        ((ours, tmp_path / "x"), "--to: "),
        ((ours, tmp_path / "x", "lama"), "--to: 'lama' is not known; nearest: 'llama'"),
        ((ours, tmp_path / "x", "llama"), "position: 'alibi' cannot be expressed in a llama checkpoint"),
        ((theirs, ours), "DST: "),
        ((tmp_path / "nowhere", tmp_path / "x"), "no such folder"),
    ):
        with pytest.raises(ConfigError, match=expected):
            convert(*arguments)


def test_a_model_of_ours_that_does_not_fit_its_config_is_refused(tmp_path: Path):
    folder = save_tiny(tmp_path / "ours", "llama")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 3}))
    with pytest.raises(ConfigError, match="tensors are missing"):
        load_ours(folder)
    (folder / "config.json").write_text(json.dumps({**values, "num_attention_heads": 5}))
    with pytest.raises(ConfigError, match=r"config\.json: "):
        load_ours(folder)


def test_the_folder_of_a_run_is_found_and_a_config_is_read_as_it_is(run_folder: Path):
    assert checkpoint_folder(run_folder) == run_folder / "model"
    assert read_config(run_folder / "model")["model_type"] == "hfa_gla"
    with safe_open(run_folder / "model" / "model.safetensors", "pt") as file:
        assert set(read_tensors(run_folder / "model")) == set(file.keys())
    assert hf_arch.list_architectures()
