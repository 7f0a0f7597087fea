"""Every private or version-dependent name of transformers that models touch, in one place.

Other files of `layers` and `models` import these names from here, so that a new version of transformers is checked in
one file. `tests/test_compat.py` says of each name what rests on it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING as STATIC_LAYER_TYPE_MAPPING
from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
from transformers.cache_utils import LinearAttentionLayer as LinearAttentionLayer
from transformers.integrations import use_experts_implementation as use_experts_implementation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as ALL_EXPERTS_FUNCTIONS
from transformers.integrations.moe import ExpertsInterface as ExpertsInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa_attention_forward
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING as LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING
from transformers.masking_utils import and_masks as and_masks
from transformers.masking_utils import create_causal_mask as create_causal_mask
from transformers.masking_utils import create_recurrent_attention_mask as create_recurrent_attention_mask
from transformers.masking_utils import create_sliding_window_causal_mask as create_sliding_window_causal_mask
from transformers.modeling_layers import GenericForQuestionAnswering as GenericForQuestionAnswering
from transformers.modeling_layers import GenericForSequenceClassification as GenericForSequenceClassification
from transformers.modeling_layers import GenericForTokenClassification as GenericForTokenClassification
from transformers.modeling_layers import GradientCheckpointingLayer as GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast as BaseModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS as ROPE_INIT_FUNCTIONS
from transformers.modeling_rope_utils import dynamic_rope_update as dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as ALL_ATTENTION_FUNCTIONS
from transformers.modeling_utils import slice_logits_to_keep as slice_logits_to_keep
from transformers.models.auto import modeling_auto as modeling_auto
from transformers.processing_utils import Unpack as Unpack
from transformers.utils import TransformersKwargs as TransformersKwargs
from transformers.utils import can_return_tuple as can_return_tuple
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.generic import merge_with_config_defaults as merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder as OutputRecorder
from transformers.utils.output_capturing import capture_outputs as capture_outputs

CACHE_ARGUMENT: str = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version calls the cache, in arguments and in outputs: `past_key_values` until 5.23, `cache` from 5.24."""

NAME_TABLES = {
    "model": "MODEL_MAPPING_NAMES",
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question_answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
}
"""transformers decides by these tables of `modeling_auto`, not by classes, whether labels are shifted (label smoothing)
and which labels a test needs."""


def name_table(kind: str) -> dict[str, str]:
    """The table from model_type to class name for a kind of model."""
    return getattr(modeling_auto, NAME_TABLES[kind])


def attention_implementation(config: Any) -> str:
    """Which attention function the models of a config call: "eager", "sdpa", ..."""
    return config._attn_implementation


def calls_torch_sdpa(config: Any) -> bool:
    """Whether they call torch's fused product as transformers does, and nothing that somebody has put in its place."""
    return attention_implementation(config) == "sdpa" and ALL_ATTENTION_FUNCTIONS.get("sdpa") is sdpa_attention_forward


def uses_flash_attention(config: Any) -> bool:
    """Whether they call one of the flash attention functions, which take documents and padding by their lengths."""
    return is_flash_attention_requested(config)


def experts_implementation(config: Any) -> str | None:
    """Which function computes the experts: "eager", "grouped_mm", ..."""
    return config._experts_implementation


def set_experts_implementation(config: Any, name: str | None) -> None:
    """Choose how the experts are computed, for models that exist already."""
    config._experts_implementation = name


def is_expert_parallel(experts: Any) -> bool:
    """Whether another process has some of these experts, for which tokens carry numbers past the last one here."""
    return experts._is_expert_parallel


def assert_async(condition: Tensor, message: str) -> None:
    """Have the graph of a compiler raise a RuntimeError where `condition` (one bool) does not hold."""
    torch._assert_async(condition, message)


def auto_class(config_class: type) -> str | None:
    """The Auto class for which `register_for_auto_class` has marked a config class."""
    return config_class._auto_class  # type: ignore[attr-defined]


def version_of(tensor: Tensor) -> int:
    """How often a tensor has been written to in place; -1 for one that counts no writes, which nobody trains."""
    return -1 if tensor.is_inference() else tensor._version
