"""No feature of the config is ignored in silence: it changes the model, or it is refused with a line that names it."""

from __future__ import annotations

import pytest
import torch

import hf_arch
from hf_arch.core.errors import ConfigError
from hf_arch.models.configuration import FEATURES
from tests.suite.models import ARCHITECTURES, perturbed_model, token_ids

VALUES = {
    "attention_bias": (True, False),
    "qk_norm": (True, False),
    "sliding_window": (5, None),
    "attn_logit_softcapping": (1.5, None),
    "attention_dropout": (0.5, 0.0),
    "mlp_bias": (True, False),
    "hidden_act": ("sigmoid", "gelu_tanh"),
    "position": ("alibi", "rope", "learned"),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 500.0},),
}


@pytest.mark.sampled(1)
@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_feature_shows_or_is_refused(name: str) -> None:
    assert VALUES.keys() == set(FEATURES)
    ids, default = token_ids(1, 17), None
    for field, values in VALUES.items():
        usual = getattr(type(hf_arch.tiny_config(name)), field)
        for value in values:
            if value == getattr(hf_arch.tiny_config(name), field) or (value in (None, False, 0.0) and not usual):
                continue
            try:
                model = perturbed_model(name, **{field: value})
            except ConfigError as error:
                assert field in str(error) and "\n" not in str(error)
                continue
            if default is None:
                default = _training_logits(perturbed_model(name), ids)
            if value in (None, False, 0.0):
                continue  # switching off what no component has is no mistake
            assert not torch.equal(_training_logits(model, ids), default), f"{field}: {value!r} shows nowhere"


def _training_logits(model, ids):
    torch.manual_seed(1)
    return model.train()(ids, use_cache=False).logits


def test_what_a_component_does_not_have_is_refused_by_name() -> None:
    for field, value in (("qk_norm", True), ("rope_parameters", {"rope_type": "default", "rope_theta": 5.0})):
        with pytest.raises(ConfigError, match=f"{field}: .* would have no effect, since none of gla, glu takes it"):
            hf_arch.tiny_config("gla", **{field: value})
    with pytest.raises(ConfigError, match="rope_parameters"):
        hf_arch.tiny_config("gpt2", rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    mixed = hf_arch.tiny_config("gla", mixer=["gla", "attention"], sliding_window=4)
    assert mixed.windows == [None, 4]


def test_defaults_of_an_architecture_may_lose_their_component() -> None:
    """GPT-2's biases and positions, with another mixer in place of attention, are no mistake of the user."""
    config = hf_arch.tiny_config("gpt2", mixer="gla")
    assert type(config)(**config.to_diff_dict()).mixer == config.mixer
