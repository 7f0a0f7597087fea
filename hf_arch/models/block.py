"""One decoder block: a token mixer and a channel mixer with their norms, on a residual stream.

With the stream `add`:
pre:       x + mixer(norm(x)),        then x + ffn(norm(x))            (GPT-2, Llama)
post:      norm(x + mixer(x)),        then norm(x + ffn(x))            (Vaswani et al. 2017)
sandwich:  x + norm(mixer(norm(x))),  then x + norm(ffn(norm(x)))      (Ding et al. 2021; Gemma 2)
output:    x + norm(mixer(x)),        then x + norm(ffn(x))            (OLMo 2)
stream:    norm(x) + mixer(norm(x)),  then norm(x) + ffn(norm(x))      (MiniMax-01)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..core.registry import NORMS
from ..layers.compat import GradientCheckpointingLayer
from ..layers.contract import EMPTY_CONTEXT, LayerContext, LayerOutput
from ..layers.embeddings.base import layer_value_names
from ..layers.ffns.ffn import NoFeedForward
from ..layers.norms import normed
from ..layers.sites.base import build_sites
from ..layers.streams.base import LayerStream, State, Sublayer
from .branch_scales import SITES
from .configuration import ArchConfig


class LayerResult(NamedTuple):
    """What a block gives back, taken apart.

    Attributes:
        state: the stream. router_logits: of a routed feed-forward, or None.
        published: values for later layers, in the order of the block's `publishes`.
    """

    state: State
    router_logits: Tensor | None
    published: tuple[Tensor, ...]


class DecoderLayer(GradientCheckpointingLayer):
    """A block. What carries gradients comes by position (gradient checkpointing sees nothing else), the context by
    keyword."""

    def __init__(self, config: ArchConfig, layer_idx: int):
        super().__init__()
        mixer_class, mixer_options = config.mixer_specs[layer_idx]
        ffn_class, ffn_options = config.ffn_specs[layer_idx]
        stream_class, stream_options = config.stream_spec
        self.needs = (*mixer_class.needs(config, mixer_options, layer_idx), *layer_value_names(config, layer_idx))
        self.publishes = mixer_class.publishes(config, mixer_options, layer_idx)
        self.norm_position = config.norm_positions[layer_idx]
        first = self.norm_position != "output" and not stream_class.norms_what_it_gives
        behind = self.norm_position in ("sandwich", "output")
        self.stream = stream_class.Layer(config, stream_options, layer_idx)
        self.mixer = mixer_class(config, mixer_options, layer_idx)
        self.mixer_writes = self.mixer.writes  # here, since what is put around the mixer later has no such attribute
        self.mixer_norm = _norm(config) if first else None
        self.mixer_post_norm = _norm(config) if behind else None
        self.ffn = None if ffn_class is NoFeedForward else ffn_class(config, ffn_options, layer_idx)
        has_ffn = self.ffn is not None
        self.shares_norm = has_ffn and stream_class.shares_norm(stream_options)
        self.ffn_norm = _norm(config) if has_ffn and first and not self.shares_norm else None
        self.ffn_post_norm = _norm(config) if has_ffn and behind else None
        self.sites = nn.ModuleDict(
            {place: nn.ModuleList(modules) for place, modules in build_sites(config, layer_idx).items()}
        )
        self.dropout = nn.Dropout(config.residual_dropout)
        parametrization, given = config.parametrization_spec
        self.residual_multiplier = config.residual_multiplier * parametrization.residual(config, given)
        scales = (1.0, 1.0) if config.branch_scales is None else config.branch_scales[layer_idx]
        self.branch_scales = dict(zip(SITES, scales, strict=True))
        self._adds_alone = (
            stream_class.Layer is LayerStream
            and self.norm_position == "pre"
            and self.residual_multiplier == 1
            and set(self.branch_scales.values()) == {1}
            and self.mixer_writes
            and not (self.shares_norm or self.sites or self.needs or self.publishes)
        )

    def run(self, state: State, shared: Any, values: Mapping[str, Tensor], context: LayerContext) -> LayerResult:
        """One run of the block over the stream.

        Args:
            shared: this layer's entry of shared parameters, or None. values: what earlier layers published.
        """
        out = self(state[0], shared, *state[1:], *(values[name] for name in self.needs), context=context)
        if isinstance(out, Tensor):
            return LayerResult((out,), None, ())
        first, router_logits, *rest = out
        cut = len(rest) - len(self.publishes)
        return LayerResult((first, *rest[:cut]), router_logits, tuple(rest[cut:]))

    def forward(
        self, hidden_states: Tensor, shared: Any = None, *tensors: Tensor, context: LayerContext = EMPTY_CONTEXT
    ) -> Any:
        """Args:
            hidden_states: [B, T, D], the stream's first tensor. shared: as in `run`.
            tensors: the stream's other tensors, then the values of `needs` in that order.

        Returns:
            The stream's only tensor; or, flat, since gradient checkpointing looks no deeper: its first tensor, router
            logits or None, its other tensors, the values of `publishes` in that order.
        """
        if self._adds_alone and shared is None and not tensors and not self.stream.is_hooked():
            return self._added(hidden_states, context)
        cut = len(tensors) - len(self.needs)
        run, norm, ffn = self.stream.run, self.mixer_norm, self.ffn
        state = run("enter", (hidden_states, *tensors[:cut]))
        sites = dict(self.sites.items())
        own = context.changed(shared=shared, values=dict(zip(self.needs, tensors[cut:], strict=True)), sites=sites)
        state = (*own.at("block_input", state[0], state[0]), *state[1:])
        state = self._normed_stream(state, norm)
        x = self._normed(run("read", state, "mixer"), norm)
        (x,) = own.at("mixer_input", x, x)
        mixed = LayerOutput.of(self.mixer(x, context=own))
        if self.mixer_writes:
            state = self._write(state, mixed.hidden_states, "mixer", norm, self.mixer_post_norm)
        router_logits = None
        if ffn is not None:
            norm = self.ffn_norm
            if not self.shares_norm:
                state = self._normed_stream(state, norm)
                x = self._normed(run("read", state, "ffn"), norm)
            (x,) = own.at("ffn_input", x, x)
            fed = LayerOutput.of(ffn(x, context=own.changed(shared=context.shared)))
            router_logits = fed.router_logits
            state = self._write(state, fed.hidden_states, "ffn", norm, self.ffn_post_norm)
        assert not sites, f"layer of {type(self.mixer).__name__}: nothing was applied at {', '.join(sites)}"
        state = run("leave", state)
        if router_logits is None and not self.publishes and len(state) == 1:
            return state[0]
        return (state[0], router_logits, *state[1:], *(mixed.published[name] for name in self.publishes))

    def _added(self, x: Tensor, context: LayerContext) -> Any:
        """`forward` of the most common block, x + mixer(norm(x)) and x + ffn(norm(x)), where nothing else is to be
        done: in a decoding step of a small model, Python takes as long as the products."""
        dropout = self.dropout if self.dropout.p and self.dropout.training else None
        router_logits = None
        written: Any = None
        for norm, part in ((self.mixer_norm, self.mixer), (self.ffn_norm, self.ffn)):
            if part is None:
                continue
            assert norm is not None
            x, read = normed(norm, x, context.row, written)
            out: Any = part(read, context=context)
            if isinstance(out, LayerOutput):
                out, router_logits = out.hidden_states, out.router_logits
            written = out if dropout is None else dropout(out)
        x = x + written
        return x if router_logits is None else (x, router_logits)

    def _normed(self, x: Tensor, norm: nn.Module | None) -> Tensor:
        return x if self.norm_position in ("post", "stream") or norm is None else norm(x)

    def _normed_stream(self, state: State, norm: nn.Module | None) -> State:
        return (norm(state[0]), *state[1:]) if self.norm_position == "stream" and norm is not None else state

    def _write(
        self, state: State, out: Tensor, site: Sublayer, norm: nn.Module | None, post_norm: nn.Module | None
    ) -> State:
        if post_norm is not None:
            out = post_norm(out)
        if self.dropout.p:
            out = self.dropout(out)
        if self.residual_multiplier != 1:
            out = out * self.residual_multiplier
        if self.branch_scales[site] != 1:
            out = out * self.branch_scales[site]
        state = self.stream.run("write", state, out, site)
        if self.norm_position == "post" and norm is not None:
            state = (norm(state[0]), *state[1:])
        return state


def _norm(config: ArchConfig) -> nn.Module:
    return NORMS.get(config.norm, "norm")(config.hidden_size, config.norm_eps)
