"""GLA with coarser decays than its own, for the gate ladder (Yang et al. 2023, arXiv 2312.06635, table of ablations).

    S_t = alpha_t S_{t-1} + k_t v_t^T

gate "fixed": alpha is RetNet's constant of the head; "scalar": one number a head and token, through the same two
projections as GLA's vector. A recipe loads this file by `plugins: [gate_mixers.py]`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_arch.core.options import options
from hf_arch.core.registry import MIXERS
from hf_arch.layers.layout import SequenceLayout
from hf_arch.layers.mixers.gla import GatedLinearAttention, GLAOptions


@options
class CoarseGLAOptions(GLAOptions):
    """Those of GLA, and how fine the decay is."""

    gate: Literal["fixed", "scalar"] = "scalar"


@MIXERS.register("coarse_gla")
class CoarseGLA(GatedLinearAttention):
    """GLA whose keys of one head decay alike."""

    Options = CoarseGLAOptions
    label = "CoarseGLA"

    def __init__(self, config: Any, options: CoarseGLAOptions, layer_idx: int):
        super().__init__(config, options, layer_idx)
        if options.gate == "fixed":
            del self.gk_proj
        else:
            self.gk_proj[1] = nn.Linear(options.gate_low_rank_dim, self.sizes.num_kv_heads)

    def log_decay(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        """log alpha, fp32 [B, T, H, K], the same for all K; 0 at padding."""
        heads, keys = self.sizes.num_heads, self.sizes.head_k_dim
        if self.options.gate == "fixed":
            fixed = torch.log1p(-torch.exp2(-5.0 - torch.arange(heads, device=x.device, dtype=torch.float32)))
            gate = fixed.expand(*x.shape[:2], heads)
        else:
            gate = F.logsigmoid(self.gk_proj(x).float()) / self.options.gate_logit_normalizer
        return layout.zero_padding(gate)[..., None].expand(-1, -1, -1, keys)
