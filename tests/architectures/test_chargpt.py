"""The character GPT: its sizes, and its blocks, which norm after adding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import hf_arch
from hf_arch.models.architectures.chargpt import VARIANTS
from tests.mixers.layers import build


@pytest.mark.parametrize(
    ("variant", "parameters"), [(None, 14_270_208), ("A", 85_252_608), ("B", 128_074_752), ("C", 170_995_200)]
)
def test_sizes_of_the_variants(variant: str | None, parameters: int) -> None:
    config = hf_arch.config_from_dict({"architecture": "chargpt", **VARIANTS.get(variant, {})})
    assert hf_arch.cost(config, config.max_position_embeddings).params_total == parameters


def test_a_block_norms_after_adding_and_projects_the_heads() -> None:
    model = build("chargpt")
    layer, x = model.model.layers[0], torch.randn(2, 7, 32)
    with torch.no_grad():
        q, k, v = (
            projection(x).view(2, 7, 4, 8).transpose(1, 2)
            for projection in (layer.mixer.q_proj, layer.mixer.k_proj, layer.mixer.v_proj)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = layer.mixer_norm(x + layer.mixer.o_proj(heads))
        expected = layer.ffn_norm(h + layer.ffn.down_proj(F.gelu(layer.ffn.up_proj(h))))
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    assert isinstance(model.model.norm, torch.nn.Identity)


def test_dropout_acts_on_attention_projections_and_embeddings() -> None:
    config = hf_arch.tiny_config("chargpt")
    assert (config.embedding_dropout, config.residual_dropout, config.attention_dropout) == (0.2, 0.2, 0.2)
    layer, x = build("chargpt").train().model.layers[0], torch.randn(1, 5, 32)
    assert not torch.equal(layer(x), layer(x))
