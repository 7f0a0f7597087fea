"""transformers' own model, config, training, FSDP and tensor-parallel tests over every registered architecture.

One test class an architecture, so that `-k gla` selects one:

    pytest -m conformance tests/conformance                                           # the whole
    pytest -m "conformance and not slow and not distributed" tests/conformance -n 2   # what CI runs

The README beside this file says what is skipped, and why.
"""

from __future__ import annotations

import functools
import unittest
from typing import Any
from unittest import mock

import pytest

from . import sdist

try:
    sdist.ensure_modules()
except sdist.SdistUnavailable as unavailable:
    pytest.skip(str(unavailable), allow_module_level=True)

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
)

import hf_arch
from hf_arch.layers.attention_product import AttentionProduct

from .transformers_tests import test_expert_parallel_mixin, test_fsdp_mixin, test_tensor_parallel_mixin
from .transformers_tests.test_configuration_common import ConfigTester
from .transformers_tests.test_expert_parallel_mixin import ExpertParallelTesterMixin
from .transformers_tests.test_fsdp_mixin import FSDPTesterMixin
from .transformers_tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin, ids_tensor
from .transformers_tests.test_tensor_parallel_mixin import TensorParallelTesterMixin
from .transformers_tests.test_training_mixin import TrainingTesterMixin

# None switches the distributed tests on for every model that declares a plan; upstream lists its own families.
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES = None
test_expert_parallel_mixin.EP_DISTRIBUTED_TEST_MODEL_TYPES = None

AUTO_CLASSES = {
    "base_model_class": AutoModel,
    "causal_lm_class": AutoModelForCausalLM,
    "sequence_classification_class": AutoModelForSequenceClassification,
    "token_classification_class": AutoModelForTokenClassification,
    "question_answering_class": AutoModelForQuestionAnswering,
}

# transformers' test of attention sets the window of the config, which is for layers that state none of their own.
FIELDS = {"based": {"mixer": [{"type": "based", "feature_dim": 4}, "attention"], "sliding_window": 8}}


@functools.cache
def count_attention_layers(architecture: str) -> int:
    """Layers that form attention weights, which `output_attentions` returns."""
    with torch.device("meta"):
        model = AutoModel.from_config(hf_arch.tiny_config(architecture))
    return sum(any(isinstance(module, AttentionProduct) for module in layer.modules()) for layer in model.layers)


class ModelTester:
    """What the mixins ask for: a tiny config, its sizes, one batch, and the classes registered for it."""

    batch_size = 3
    seq_length = 7
    is_training = True

    def __init__(self, architecture: str):
        self.architecture = architecture
        config = self.get_config()
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads
        for name, auto_class in AUTO_CLASSES.items():
            setattr(self, name, auto_class._model_mapping[type(config)])

    @property
    def all_model_classes(self) -> tuple[type, ...]:
        return tuple(getattr(self, name) for name in AUTO_CLASSES)

    def get_config(self, **overrides: Any) -> PreTrainedConfig:
        return hf_arch.tiny_config(self.architecture, pad_token_id=0, **FIELDS.get(self.architecture, {}), **overrides)

    def prepare_config_and_inputs_for_common(self) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = ids_tensor([self.batch_size, self.seq_length], config.vocab_size)
        return config, {"input_ids": ids, "attention_mask": torch.tril(torch.ones_like(ids))}


class Conformance(
    ModelTesterMixin,
    GenerationTesterMixin,
    TrainingTesterMixin,
    ExpertParallelTesterMixin,
    TensorParallelTesterMixin,
    FSDPTesterMixin,
):
    architecture: str
    test_can_init_all_missing_weights_before_2023 = True  # else skipped for files without a copyright year
    model_tester: Any = None  # the mixins declare an abstract property

    def setUp(self) -> None:
        self.model_tester = ModelTester(self.architecture)
        self.all_model_classes = self.model_tester.all_model_classes
        config = self.model_tester.get_config()
        self.config_tester = ConfigTester(self, config_class=type(config))
        self.attention_layers = count_attention_layers(self.architecture)
        self.has_attentions = self.attention_layers > 0
        # Upstream takes every config that declares `rope_parameters`: ours all do, and `position` says who reads it.
        uses_rope = config.position == "rope" and self.has_attentions
        if self._testMethodName.startswith("test_model_rope_") and not uses_rope:
            self.skipTest("No attention layer with rotary positions")
        takes_window = "sliding_window" in config.features_taken
        if "eager_matches" in self._testMethodName and self.has_attentions and not takes_window:
            self.skipTest("No layer takes the config's window, which upstream sets")
        # Any of our model classes can have experts; upstream takes every class that can for one that does.
        has_experts = any(ffn.routed for ffn, _ in config.ffn_specs)
        if "batched_and_grouped_inference" in self._testMethodName and not has_experts:
            self.skipTest("No layer with experts")

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def test_can_init_all_missing_weights(self) -> None:
        """Upstream seeds the generator before each module is initialised; ours draw by its state when a model is made,
        which differs between the two models made here, so both are given one."""
        with mock.patch("hf_arch.models.pretrained.global_seed", return_value=1):
            super().test_can_init_all_missing_weights()

    def test_num_layers_is_small(self) -> None:
        """Upstream allows two layers, and more by a list of class names; mixed layers show one of each kind."""
        assert self.model_tester.num_hidden_layers <= 4

    def test_attention_outputs(self) -> None:
        """There are as many attention weights as layers of attention, not as layers."""
        self.model_tester.num_hidden_layers = self.attention_layers
        super().test_attention_outputs()

    def _get_tiny_config(self) -> tuple[type, dict[str, Any]]:
        """Upstream resizes a config in place; ours is tiny already, and its derived sizes belong to it.

        An even vocabulary, as upstream's: shards of unequal size make a tied head diverge from DDP at the second step,
        for transformers' LlamaForCausalLM as well.
        """
        config = self.model_tester.get_config(vocab_size=64)
        return type(config), config.to_diff_dict()


def class_name(architecture: str) -> str:
    return "Test" + "".join(part.capitalize() for part in architecture.split("_"))


for _architecture in hf_arch.list_architectures():
    _name = class_name(_architecture)
    globals()[_name] = type(
        _name, (Conformance, unittest.TestCase), {"architecture": _architecture, "__module__": __name__}
    )
