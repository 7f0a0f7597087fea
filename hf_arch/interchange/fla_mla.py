"""FLA's multi-head latent attention."""

from __future__ import annotations

from typing import Any, ClassVar

from ..models.configuration import ArchConfig
from .base import FOREIGN, Rule, fused, same
from .fla import FLAConverter
from .reader import ConfigReader

_LATENT_NORM_EPS = 1e-5  # whatever the config says


@FOREIGN.register("mla")
class FLALatentAttention(FLAConverter):
    """FLA's MLA: the latent and the rotary key come from two projections, rotary features lie in halves."""

    architecture, mixer = "mla", "mla"
    grouped_heads = False
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 16}

    def mixer_to_ours(self, reader: ConfigReader) -> dict[str, Any]:
        # Its rotary embedding knows only theta; a scaling of the softmax is computed there and not used.
        reader.dead("rope_scaling", "rope_parameters", "elementwise_affine")
        nope, rope = reader.given("qk_nope_head_dim", 128), reader.given("qk_rope_head_dim", 64)
        reader.only("qk_head_dim", [nope + rope, None], nope + rope)
        return {
            "q_lora_rank": reader.take("q_lora_rank", 64),
            "kv_lora_rank": reader.take("kv_lora_rank", 512),
            "qk_nope_head_dim": nope,
            "qk_rope_head_dim": rope,
            "v_head_dim": reader.take("v_head_dim", 128),
            "bias": False,
            "window": reader.take("window_size") or 0,
            "rope_theta": float(reader.take("rope_theta", 10000.0) or 10000.0),
            "latent_norm_eps": _LATENT_NORM_EPS,
        }

    def mixer_to_theirs(self, config: ArchConfig, options: Any) -> dict[str, Any]:
        names = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        return {
            **{name: getattr(options, name) for name in names},
            "qk_head_dim": options.qk_nope_head_dim + options.qk_rope_head_dim,
            "window_size": (config.sliding_window if options.window is None else options.window) or None,
            "rope_theta": options.rope_theta or (config.rope_parameters or {}).get("rope_theta", 10000.0),
        }

    def mixer_rules(
        self, config: ArchConfig, options: Any, foreign: dict[str, Any], ours: str, theirs: str
    ) -> list[Rule]:
        latent = fused(
            (f"{theirs}.kv_proj.0.weight", f"{theirs}.k_rope.weight"),
            f"{ours}.kv_a_proj.weight",
            (options.kv_lora_rank, options.qk_rope_head_dim),
        )
        rules = [
            Rule(latent.theirs, latent.ours, latent.to_theirs, latent.to_ours),
            same(f"{ours}.kv_norm.weight", f"{theirs}.kv_proj.1.weight"),
            same(f"{ours}.kv_b_proj.weight", f"{theirs}.kv_proj.2.weight"),
            same(f"{ours}.o_proj.weight", f"{theirs}.o_proj.weight"),
        ]
        if options.q_lora_rank is None:
            return [*rules, same(f"{ours}.q_proj.weight", f"{theirs}.q_proj.weight")]
        modules = ("q_a_proj", "q_norm", "q_b_proj")
        return rules + [same(f"{ours}.{name}.weight", f"{theirs}.q_proj.{i}.weight") for i, name in enumerate(modules)]
