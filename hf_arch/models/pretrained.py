"""What all models of ours share: transformers' flags, the weight initialisation, what is done once a model is made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import logging

from ..layers.attention_product import AttentionProduct
from ..layers.compat import OutputRecorder
from ..layers.fp32 import loading_patterns, restore_fp32
from .adapters import enter_lora_targets
from .alignment import align_weights
from .arguments import CACHE_NAMES
from .block import DecoderLayer
from .configuration import ArchConfig
from .init_policy import apply_policy, pending_parameters
from .initialization import init_arch_weights, init_hidden_matrix
from .made_with import MadeWith
from .named_draws import NamedDraws, global_seed, named_draws
from .weight_decay import mark_exempt_parameters, teach_trainer

logger = logging.get_logger(__name__)


class ArchPreTrainedModel(PreTrainedModel):
    """What all models share: transformers' flags and the weight initialisation."""

    config: ArchConfig
    config_class = ArchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = [*CACHE_NAMES]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^losses\."]
    """Modules of training losses, which other heads do not have."""
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(AttentionProduct, index=1),
    }

    def __init__(self, config: ArchConfig):
        super().__init__(config)
        self.made_with = MadeWith(config)
        # Nothing is drawn between a model's and its base model's: both see the generator as the outermost found it.
        self._initial_seed = global_seed()
        self._draws: NamedDraws | None = None
        self._module_names: dict[nn.Module, str] = {}
        # transformers refuses assisted generation by this flag: it takes tokens back, which a state cannot.
        self._is_stateful = not {"full_attention", "sliding_attention"}.issuperset(config.layer_types)

    def post_init(self) -> None:
        """Also widens what a low default dtype made too narrow, before it is initialised, and tells the loader of
        it."""
        restore_fp32(self)
        self._keep_in_fp32_modules_strict = loading_patterns(self)
        super().post_init()
        if global_seed() == self._initial_seed:
            torch.rand((), device="cpu")  # the next model is another one, also where no constructor drew anything
        teach_trainer()
        enter_lora_targets(self, self.config.model_type)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As PreTrainedModel's.

        Raises:
            ConfigError: the config was changed since the model was made, before anything is written.
        """
        self.made_with.check(self.config)
        super().save_pretrained(*args, **kwargs)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As PreTrainedModel's, which is called last of all when a model is made and when it is loaded."""
        super().tie_weights(*args, **kwargs)
        mark_exempt_parameters(self)
        align_weights(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and module is not self.get_output_embeddings():
            init_hidden_matrix(module, self.config)
        init_arch_weights(module, self.config)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **kwargs: Any
    ) -> nn.Embedding:
        """As PreTrainedModel's; refused before anything changes where other tables of the model are by token id.

        Raises:
            ValueError: embeddings that look tokens up, made for the vocabulary as it is.
        """
        size = new_num_tokens or self.config.vocab_size
        size += -size % (pad_to_multiple_of or 1)
        looked_up = [part.__name__ for part, _ in self.config.embedding_specs if part.reads_ids]
        if size != self.config.vocab_size and looked_up:
            raise ValueError(
                f"resize_token_embeddings: {size} tokens are not supported, since tables and hashes of "
                f"{', '.join(looked_up)} are made for vocab_size {self.config.vocab_size}; create a new model"
            )
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, **kwargs)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As PreTrainedModel's, but for what runs without gradients."""
        where_needed = partial(_checkpoint_with_gradients, gradient_checkpointing_func)
        super()._set_gradient_checkpointing(enable, where_needed, *args, **kwargs)

    def initialize_weights(self) -> None:
        """As PreTrainedModel's, each parameter drawn from (seed, its name in the base model): `named_draws`."""
        prefix = f"{self.base_model_prefix}."
        spec = self.config.init_spec
        pending = [] if spec is None else pending_parameters(self)
        self._module_names = {module: name.removeprefix(prefix) for name, module in self.named_modules()}
        try:
            with named_draws(self, self._initial_seed, prefix) as self._draws:
                super().initialize_weights()
                if spec is not None:
                    policy = spec[0](self.config, spec[1])
                    apply_policy(policy, self, pending, prefix, self._draws.enter_module)
        finally:
            self._draws, self._module_names = None, {}

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        if self._draws is not None:
            self._draws.enter_module(self._module_names.get(module, ""))
        # For custom code transformers skips modules without unloaded parameters of their own, such as a block that
        # rescales its projections; ours may all be visited, since `transformers.initialization` spares what is loaded.
        super()._initialize_weights(module, is_custom_code=False)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for its decorator in this file; the experts are a component

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return True

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing: saved checkpoints carry no code; `hf-arch export --format hub` writes a self-contained
        repository."""


def _checkpoint_with_gradients(checkpoint: Callable[..., Any], function: Callable[..., Any], *inputs: Any) -> Any:
    """`checkpoint(function, *inputs)`; `function(*inputs)` without gradients, where nothing is kept anyway, and where a
    re-entrant checkpoint would detach the tensors that only pass through."""
    return checkpoint(function, *inputs) if torch.is_grad_enabled() else function(*inputs)
