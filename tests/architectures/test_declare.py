"""An architecture is one declaration: the model classes made from it are named, importable, picklable and loadable."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.models.architectures.declare import architecture
from hf_arch.models.configuration import ArchConfig

HEADS = {
    AutoModel: "Model",
    AutoModelForCausalLM: "ForCausalLM",
    AutoModelForSequenceClassification: "ForSequenceClassification",
    AutoModelForTokenClassification: "ForTokenClassification",
    AutoModelForQuestionAnswering: "ForQuestionAnswering",
}
PLUGIN = """
from hf_arch.models.architectures.declare import architecture
from hf_arch.models.configuration import ArchConfig, Component

@architecture("thin", summary="a thin Llama", paper="none", tiny={"num_key_value_heads": 2})
class ThinConfig(ArchConfig):
    hidden_size: int = 64
    mixer: Component = "attention"
"""


@pytest.mark.parametrize("name", hf_arch.list_architectures())
def test_every_class_is_where_its_name_says(name: str):
    config = hf_arch.tiny_config(name)
    module = importlib.import_module(type(config).__module__)
    stem = type(config).__name__.removesuffix("Config")
    for auto, suffix in HEADS.items():
        made = auto._model_mapping[type(config)]
        assert made.__name__ == made.__qualname__ == stem + suffix
        assert getattr(module, made.__name__) is made and made.config_class is type(config)
        assert pickle.loads(pickle.dumps(made)) is made


def test_a_pickled_model_gives_the_same_logits():
    model = AutoModelForCausalLM.from_config(hf_arch.tiny_config("rwkv7")).eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, model(ids).logits)


@pytest.mark.rest
def test_a_plugin_declares_an_architecture_of_its_own(tmp_path, fresh):
    (tmp_path / "thin.py").write_text(PLUGIN)
    code = f"""
import hf_arch, pickle, torch
from hf_arch.core.registry import load_plugin
from transformers import AutoModelForCausalLM
load_plugin({str(tmp_path / "thin.py")!r})
config = hf_arch.config_from_dict({{"architecture": "thin", "num_hidden_layers": 1, "vocab_size": 50}})
model = AutoModelForCausalLM.from_config(config).eval()
assert type(model).__name__ == "ThinForCausalLM" and "thin" in hf_arch.list_architectures()
assert config.model_type == "hfa_thin" and pickle.loads(pickle.dumps(model)).config.hidden_size == 64
model.save_pretrained({str(tmp_path / "saved")!r})
again = AutoModelForCausalLM.from_pretrained({str(tmp_path / "saved")!r})
ids = torch.arange(8)[None]
assert torch.equal(again(ids).logits, model(ids).logits)
"""
    done = fresh(code)
    assert done.returncode == 0, done.stderr


def test_a_config_that_is_not_called_config_is_refused():
    with pytest.raises(ConfigError, match="must be called <Name>Config"):

        @architecture("nameless", summary="", paper="")
        class Nameless(ArchConfig):
            """A class by a name that gives no stem."""
