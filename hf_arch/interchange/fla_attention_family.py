"""FLA's further attentions: forgetting_transformer, path_attn, stickbreaking_attn, nsa and moba."""

from __future__ import annotations

from typing import Any, ClassVar

from .base import FOREIGN
from .fla import ATTENTION, THETA, FLAConverter
from .table import Always, Modules, Option, Unused

_NO_OUTPUT_BIAS = Always("out_bias", False)
_QKV_BIAS = Option("qkv_bias", default=False, null=True, write=lambda layer: layer.effective["qkv_bias"])
_QK_NORM = Option("qk_norm", default=False, null=True, write=lambda layer: layer.effective["qk_norm"] is not None)


@FOREIGN.register("forgetting_transformer")
class FLAForgettingTransformer(FLAConverter):
    """FLA's Forgetting Transformer, whose `window_size` cuts its cache and nothing else."""

    architecture = mixer = "forgetting_transformer"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    mixer_options = (
        Unused("elementwise_affine window_size"),
        _NO_OUTPUT_BIAS,
        Always("window", 0),
        Always("qk_norm_eps", 1e-5),
        _QKV_BIAS,
        _QK_NORM,
        Option("use_output_gate", "output_gate", False, allowed={False: "none", True: "elementwise", None: "none"}),
    )
    mixer_tensors = (
        *ATTENTION,
        Modules("f_proj", bias=True),
        Modules("g_proj", when=lambda layer: layer.mixer.output_gate != "none"),
    )


@FOREIGN.register("path_attn")
class FLAPathAttention(FLAConverter):
    """FLA's PaTH attention; the sizes of its low rank and convolution are not in its config."""

    architecture = mixer = "path_attention"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    mixer_options = (
        Unused("elementwise_affine"),
        _NO_OUTPUT_BIAS,
        Always("qkv_bias", False),
        Always("low_rank", 32),
        Always("conv_size", 3),
        Option("use_forget_gate", "forget_gate", False, null=True),
        Option("use_w_shortconv", "use_short_conv", True, null=True),
        Option("use_low_rank_w", "use_low_rank", True, null=True),
    )
    mixer_tensors = (
        *ATTENTION,
        Modules("w_proj.0 w_proj.1", when="use_low_rank"),
        Modules("w_proj", when=lambda layer: not layer.mixer.use_low_rank),
        Modules("w_conv", "w_conv1d", when="use_short_conv"),
        Modules("b_proj", "bt_proj", bias=True),
        Modules("f_proj", "g_proj", when="forget_gate", bias=True),
    )


@FOREIGN.register("stickbreaking_attn")
class FLAStickBreaking(FLAConverter):
    """FLA's stick-breaking attention, whose `use_cache` is False for want of one."""

    architecture = mixer = "stickbreaking"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    mixer_options = (
        Unused("elementwise_affine"),
        _NO_OUTPUT_BIAS,
        _QKV_BIAS,
        _QK_NORM,
        Option("attend_current", default=False, null=True),
    )
    mixer_tensors = ATTENTION


@FOREIGN.register("nsa")
class FLANativeSparse(FLAConverter):
    """FLA's NSA, right for `block_counts` that are powers of two alone."""

    architecture = mixer = "nsa"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 64, "num_kv_heads": 4}
    mixer_options = (
        Unused("elementwise_affine"),
        _NO_OUTPUT_BIAS,
        Always("qk_norm", False),
        _QKV_BIAS,
        THETA,
        Option("head_dim", default=32, null=True, write=lambda layer: layer.effective["heads"][2]),
        Option("block_size", default=64, null=True),
        Option("block_counts", default=16, allowed=[2**power for power in range(2, 16)]),
        Option("window_size", "window", 512, null=True),
    )
    mixer_tensors = (*ATTENTION, Modules("g_proj"))


@FOREIGN.register("moba")
class FLABlockMixture(FLAConverter):
    """FLA's MoBA: `window_size` has no effect, and one block is attention to all there. Decoding is ours: FLA's
    attends to every cached key."""

    architecture = mixer = "moba"
    defaults: ClassVar[dict[str, Any]] = {"num_heads": 32}
    mixer_options = (
        Unused("elementwise_affine window_size use_flash_moba"),
        _NO_OUTPUT_BIAS,
        Always("qk_norm_eps", 1e-5),
        Always("output_norm_eps", 1e-6),
        _QKV_BIAS,
        _QK_NORM,
        THETA,
        Option("moba_chunk_size", "block_size", 256, null=True),
        Option("moba_topk", "topk", 4, allowed=range(2, 257)),
        Option("use_output_gate", default=False, null=True),
    )
    mixer_tensors = (*ATTENTION, Modules("o_norm"), Modules("g_proj.0 g_proj.1", when="use_output_gate"))
