"""What of transformers' generation these models cannot do, refused before it changes or starts anything."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation import GenerationMixin


def check_continuous_batching(config: Any) -> None:
    """Continuous batching keeps keys and values of one size in pages, one window for all layers that have any, and
    hands attention no bias and no keys to cap.

    Raises:
        ValueError: a model that needs anything else.
    """
    reason = None
    sizes = set()
    for mixer, options in config.mixer_specs:
        if mixer.cache_kind != "kv":
            reason = f"mixer {mixer.label or mixer.__name__!r} keeps no plain keys and values"
            break
        sizes.add((mixer.sizes(config, options)[1:], mixer.window(config, options)))
        if mixer.needs_key_positions(config, options):
            reason = f"mixer {mixer.label or mixer.__name__!r} needs the positions of its keys"
            break
        if getattr(options, "sinks", False):
            reason = reason or "sinks are not supported there"
        softcap = config.attn_logit_softcapping if options.softcap is None else options.softcap
        reason = reason or (None if softcap is None else "attn_logit_softcapping is not supported there")
    if reason is None and not {"full_attention", "sliding_attention"}.issuperset(config.layer_types):
        reason = f"ffn {config.ffn_specs[0][0].__name__!r}, a site or an embedding keeps a state of its own"
    if reason is None and len(config.plan) > config.num_hidden_layers:
        reason = "layers run several times, with keys for each run"
    if reason is None and config.position == "alibi":
        reason = "position 'alibi' is not supported there"
    if reason is None:
        plain = (config.num_key_value_heads or config.num_attention_heads, _head_dim(config))
        if sizes != {(plain, config.sliding_window)} or config.sliding_window == 1:
            reason = "its layers differ in key-value heads, head size or window, or see one token only"
    if reason is not None:
        raise ValueError(f"continuous batching is not supported for {config.model_type}: {reason}; use model.generate")


def _head_dim(config: Any) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def _refuse_padded_ends(mask: Any) -> None:
    """What follows such a row would be read at its padding."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or not mask.numel():
        return
    padded = (mask[:, -1] == 0) & (mask != 0).any(1)
    if bool(padded.any()):
        raise ValueError(
            f"attention_mask: row {int(padded.nonzero()[0])} ends with padding, which generate cannot continue; pad on "
            "the left (tokenizer.padding_side = 'left')"
        )


class CheckedGenerationMixin(GenerationMixin):
    """GenerationMixin without the modes that would fail halfway or leave the model changed."""

    config: Any
    generation_config: Any

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers' `generate`.

        Raises:
            ValueError: `assistant_early_exit`, which sets `num_hidden_layers` on the config that caches are made from;
                a row that ends with padding, after which transformers counts positions anew.
        """
        _refuse_padded_ends(kwargs.get("attention_mask"))
        given = generation_config if generation_config is not None else self.generation_config
        layers = kwargs.get("assistant_early_exit", getattr(given, "assistant_early_exit", None))
        if layers is not None:
            raise ValueError(
                f"assistant_early_exit: {layers} is not supported; use assistant_model or prompt_lookup_num_tokens"
            )
        return super().generate(inputs, generation_config, *args, **kwargs)

    def _update_model_kwargs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers' own; a new token is not in the prefix, whatever the last one was."""
        updated = super()._update_model_kwargs_for_generation(*args, **kwargs)
        types = updated.get("token_type_ids")
        if types is not None:
            added = kwargs.get("num_new_tokens", 1)
            updated["token_type_ids"] = torch.cat([types[:, :-added], torch.zeros_like(types[:, -added:])], 1)
        return updated

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers' own, which `generate_batch` and `transformers serve` call.

        Raises:
            ValueError: see `check_continuous_batching`.
        """
        check_continuous_batching(self.config)
        return super().init_continuous_batching(*args, **kwargs)
