"""Attention to a window of the last tokens: which one, and which kind of layer that makes."""

from __future__ import annotations

from typing import Any

from ..attention_product import AttentionProduct


def window_layer_type(window: int | None) -> str:
    """The layer type for an attention window. One of a single token gets a whole cache, and the mask alone: of the
    `window - 1` tokens that transformers' sliding cache keeps it takes 0 for all."""
    return "full_attention" if window is None or window == 1 else "sliding_attention"


def tokens_kept(seq_len: int, window: int | None) -> int:
    """Of `seq_len` tokens, those that the cache of such a layer holds; a step attends to them and to itself."""
    return seq_len if window_layer_type(window) == "full_attention" else min(seq_len, (window or 0) - 1)


class Windowed:
    """Of a mixer whose option `window` (in tokens, 0 = none) stands in for the config's `sliding_window`."""

    @classmethod
    def window(cls, config: Any, options: Any) -> int | None:
        """Attention window in tokens, or None."""
        return (config.sliding_window if options.window is None else options.window) or None

    @classmethod
    def takes_prefix(cls, config: Any, options: Any) -> bool:
        """As Mixer's: what sees all tokens, by the mask alone."""
        mixer: Any = cls
        return cls.window(config, options) is None and not mixer.needs_key_positions(config, options)

    def takes_bands(self) -> bool:
        """Where nothing but `AttentionProduct` reads the mask: not in a class whose own methods hand it on, nor with a
        bias over all pairs of tokens."""
        mixer: Any = self
        handing = [getattr(type(mixer), name, None) for name in ("forward", "attend", "expanded")]
        own = all(method is None or method.__module__.startswith(f"{__package__}.") for method in handing)
        plain = type(mixer.product).forward is AttentionProduct.forward
        return own and plain and not mixer.needs_key_positions(mixer.config, mixer.options)

    @classmethod
    def layer_type(cls, config: Any, options: Any) -> str:
        """The layer type of transformers' caches and masks."""
        return window_layer_type(cls.window(config, options))
