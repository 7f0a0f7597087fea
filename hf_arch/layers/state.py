"""The cache layer of recurrent mixers: transformers' own storage plus a token count.

`DynamicCache(config=...)` picks one cache layer per entry of `config.layer_types`. Its stock `linear_attention` layer
cannot be the only kind in a model (it has no sequence length, which `generate` asks for) and marks a state as filled
only when a convolution state is written. This subclass mends both; storage, beam reordering, offloading and static
addresses stay transformers'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from ..core.bundled import BUNDLED
from .compat import (
    LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING,
    STATIC_LAYER_TYPE_MAPPING,
    CacheLayerMixin,
    LinearAttentionLayer,
    create_recurrent_attention_mask,
)

if TYPE_CHECKING:
    from .layout import SequenceLayout

FFN_STATE = 3
"""The convolution state of a layer that is its FFN's; those before it are the mixer's, which may have three windows."""

MIXER_STATES = 8
"""States of either kind that a mixer beside others has places for."""

RECURRENT = f"hfa_recurrent:{__name__}" if BUNDLED else "hfa_recurrent"


class RecurrentStateLayer(LinearAttentionLayer, CacheLayerMixin):
    """Recurrent and convolution states of one layer, any number of each, and the number of tokens seen."""

    _layer_type = RECURRENT  # enters the class into transformers' table of dynamic cache layers
    is_compileable = False
    supports_early_init = False

    def __init__(self, **kwargs: Any):
        CacheLayerMixin.__init__(self)
        LinearAttentionLayer.__init__(self, number_of_states=1)
        self.cumulative_length = 0
        self.device: Any = None
        self.dtype: Any = None

    def _reserve(self, state_idx: int) -> None:
        while self.number_of_states <= state_idx:
            index = self.number_of_states
            self.conv_states[index] = self.recurrent_states[index] = self.conv_kernel_size[index] = None
            self.is_conv_states_initialized[index] = self.is_recurrent_states_initialized[index] = False
            self.has_previous_state[index] = False
            self.number_of_states += 1

    def _store(
        self, states: dict[int, Tensor | None], initialized: dict[int, bool], state_idx: int, new: Tensor
    ) -> Tensor:
        self._reserve(state_idx)
        if self.device is None:
            self.device, self.dtype = new.device, new.dtype
        current = states[state_idx]
        if torch.is_grad_enabled() and new.requires_grad:
            states[state_idx] = new  # a copy in place would corrupt the gradient through the cache
        elif not torch.compiler.is_compiling() and new.untyped_storage().nbytes() == new.nbytes:
            states[state_idx] = new.detach()  # a compiler knows no storages
        elif current is None or current.shape != new.shape or current.requires_grad:
            states[state_idx] = new.detach().clone()  # a view would keep all the activations next to it
        else:
            current.copy_(new)
        initialized[state_idx] = True
        self.has_previous_state[state_idx] = True
        result = states[state_idx]
        assert result is not None
        return result

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Replace convolution state `state_idx` by the window to keep, [B, C, W]."""
        self.conv_kernel_size[state_idx] = conv_states.shape[-1]
        return self._store(self.conv_states, self.is_conv_states_initialized, state_idx, conv_states)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """Replace recurrent state `state_idx`, [B, ...] in fp32."""
        return self._store(self.recurrent_states, self.is_recurrent_states_initialized, state_idx, recurrent_states)

    def advance(self, num_tokens: int) -> None:
        """Count the tokens of a finished call; the decoder does it once per layer."""
        self.cumulative_length += num_tokens

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: states are stored as they come."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise TypeError("a recurrent layer keeps no keys and values; use update_recurrent_state or update_conv_state")

    def get_seq_length(self) -> int:
        return self.cumulative_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cumulative_length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        """Forget every state; the tensors stay for the next ones. Zeros would not do: they are not every mixer's
        empty state."""
        for flags in (self.is_conv_states_initialized, self.is_recurrent_states_initialized, self.has_previous_state):
            flags.update(dict.fromkeys(flags, False))
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Taking tokens back is an error: the state before them is gone."""
        if tokens_to_remove:
            raise RuntimeError(f"a recurrent state cannot take {abs(tokens_to_remove)} tokens back; start a new cache")

    def _map(self, fn: Any) -> None:
        for states in (self.conv_states, self.recurrent_states):
            for index, state in states.items():
                if state is not None:
                    states[index] = fn(state)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda state: state[indices])


STATIC_LAYER_TYPE_MAPPING.setdefault(RECURRENT, RecurrentStateLayer)
LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.setdefault(RECURRENT, create_recurrent_attention_mask)


def count_tokens(cache: Cache | None, length: int) -> None:
    """Tell the recurrent layers of `cache` that a call of `length` tokens has ended."""
    for layer in () if cache is None else cache.layers:
        if isinstance(layer, RecurrentStateLayer):
            layer.advance(length)


class LayerState:
    """One layer's window on the model's cache: read the states at the start of a mixer, write them at its end.

    Without a cache every read gives None and every write does nothing, so a mixer has one code path.
    """

    def __init__(self, cache: Cache | None, layer_idx: int, context: Any = None):
        self.cache, self.layer_idx, self.context = cache, layer_idx, context
        self.first = 0 if context is None or context.first_state is None else context.first_state
        self.places = None if context is None or context.first_state is None else MIXER_STATES

    def __bool__(self) -> bool:
        return self.cache is not None

    def at(self, place: str, source: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`LayerContext.at` of the context that this state belongs to, for tokens without gaps, padding set to zero
        again; the tensors as they are without one."""
        if self.context is None or place not in self.context.sites:
            return tensors
        return tuple(map(self.context.layout.zero_padding, self.context.at(place, source, *tensors)))

    def recurrent(self, index: int = 0) -> Tensor | None:
        """Recurrent state `index`, or None before the first token."""
        return self._read("recurrent_states", index)

    def conv(self, index: int = 0) -> Tensor | None:
        """Convolution (or token shift) state `index`, or None before the first token."""
        return self._read("conv_states", index)

    def recurrents(self, count: int) -> tuple[Any, ...] | None:
        """The first `count` recurrent states, or None before the first token."""
        states = tuple(self.recurrent(index) for index in range(count))
        return None if states[0] is None else states

    def _read(self, kind: str, index: int) -> Tensor | None:
        if self.cache is None:
            return None
        layer, index = self.cache.layers[self.layer_idx], index + self.first
        # `has_previous_state` is of both kinds: a convolution may have written while the recurrent state is empty.
        filled = layer.has_previous_state.get(index) and getattr(layer, f"is_{kind}_initialized").get(index)
        return getattr(layer, kind).get(index) if filled else None

    def _check_place(self, index: int) -> None:
        if self.places is not None and index >= self.places:
            raise ValueError(
                f"branches: a mixer keeps its state {index} where the next one's begin; mixers side by side may have "
                f"{self.places} states of a kind each"
            )

    def write_recurrent(self, state: Tensor | None, index: int = 0) -> None:
        if self.cache is not None and state is not None:
            self._check_place(index)
            self.cache.update_recurrent_state(state, self.layer_idx, state_idx=index + self.first)
            # transformers' layers for keys and states note it with a convolution's state alone.
            self.cache.layers[self.layer_idx].has_previous_state[index + self.first] = True

    def write_recurrents(self, states: Sequence[Tensor] | None) -> None:
        """The recurrent states from the first on."""
        for index, state in enumerate(states or ()):
            self.write_recurrent(state, index)

    def advance(
        self,
        recurrence: Callable[..., Any],
        *inputs: Any,
        layout: SequenceLayout,
        states: int | None = None,
        **options: Any,
    ) -> Tensor:
        """The output of a recurrence over `inputs` from the state kept here; the state after them is kept in its place.

        Args:
            recurrence: takes `initial_state`, `output_final_state`, `segment_ids`; gives (output, final state).
            states: how many tensors its state is a tuple of; None: it is one tensor.
        """
        out, final = recurrence(
            *inputs,
            initial_state=self.recurrent() if states is None else self.recurrents(states),
            output_final_state=bool(self),
            segment_ids=layout.segment_ids,
            **options,
        )
        if states is None:
            self.write_recurrent(final)
        else:
            self.write_recurrents(final)
        return out

    def write_conv(self, state: Tensor | None, index: int = 0) -> None:
        if self.cache is not None and state is not None:
            self._check_place(index)
            self.cache.update_conv_state(state, self.layer_idx, state_idx=index + self.first)
