"""Multi-token prediction (DeepSeek-V3, 2412.19437): further modules that predict the tokens after the next one.

    h^k_t = norm( Block_k( W_k [ norm(E[id_{t+k}]) | norm(h^{k-1}_t) ] ) ),   k = 1..depth,  h^0 the last hidden states
    logits of h^k_t predict id_{t+k+1};   loss = (coefficient / depth) sum_k CE_k

W_k [D, 2D]; embedding and head are the model's own. CE_k is over valid tokens' targets that lie in the same
document, and weighs each as the next-token loss does. Inference does not run the modules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...core.errors import ConfigError
from ...core.options import Options, options
from ...core.registry import LOSSES, NORMS
from ...layers.bands import Band
from ...layers.streams.base import check_whole
from ..block import DecoderLayer
from ..loss import IGNORE_INDEX
from .base import AuxiliaryLoss, LossContext
from .z_loss import check_coefficient


@options
class MultiTokenOptions(Options):
    """`depth`: how many tokens after the next are predicted. `coefficient`: DeepSeek-V3's, at first."""

    depth: int = 1
    coefficient: float = 0.3


class Prediction(nn.Module):
    """One module: joins a later token's embedding to the hidden state, and one block."""

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        width = config.hidden_size
        self.embedding_norm, self.hidden_norm, self.post_norm = (
            NORMS.get(config.norm, "norm")(width, config.norm_eps) for _ in range(3)
        )
        self.proj = nn.Linear(2 * width, width, bias=False)
        self.block = DecoderLayer(config, layer_idx)

    def forward(self, embedded: Tensor, hidden: Tensor, context: Any) -> Tensor:
        joined = self.proj(torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], -1))
        return self.post_norm(self.block.run((joined,), None, {}, context).state[0])


@LOSSES.register("multi_token")
class MultiTokenPrediction(AuxiliaryLoss):
    """Cross-entropy of tokens further ahead, each by a block of its own."""

    Options = MultiTokenOptions
    label = "MTP"
    reads_ids: ClassVar[bool] = True

    def __init__(self, config: Any, options: MultiTokenOptions):
        super().__init__(config, options)
        self.layer_idx = block_layer(config)
        plain = block_config(config)
        self.steps = nn.ModuleList([Prediction(plain, self.layer_idx) for _ in range(options.depth)])

    @classmethod
    def validate(cls, config: Any, options: MultiTokenOptions) -> None:
        check_whole("losses multi_token depth", options.depth)
        check_coefficient("losses multi_token coefficient", options.coefficient)
        block_layer(config)

    def forward(self, context: LossContext) -> Tensor:
        assert context.input_ids is not None
        hidden, layer = context.hidden_states, replace(context.layers[self.layer_idx], cache=None, execution=None)
        keys = layer.attention_mask
        total = keys.total if isinstance(keys, Band) else keys.shape[-1] if isinstance(keys, Tensor) else None
        if total is not None and total != hidden.shape[1]:
            raise ValueError("past_key_values: multi_token needs whole sequences in training; pass no filled cache")
        documents, ids, targets = context.documents, context.input_ids, context.targets.to(hidden.device)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for ahead, step in enumerate(self.steps, 1):
            later = F.pad(ids[:, ahead:], (0, min(ahead, ids.shape[1])))
            wanted = F.pad(targets[:, ahead:], (0, min(ahead, ids.shape[1])), value=IGNORE_INDEX)
            if documents is not None:
                far = min(ahead + 1, ids.shape[1])
                same = F.pad(documents[:, far:] == documents[:, : ids.shape[1] - far], (0, far), value=False)
                wanted = torch.where(same, wanted, IGNORE_INDEX)
            if context.valid is not None:
                wanted = torch.where(context.valid.to(hidden.device), wanted, IGNORE_INDEX)
            hidden = step(context.embed(later), hidden, layer)
            loss = loss + self._cross_entropy(hidden, wanted, context)
        return self.options.coefficient / self.options.depth * loss

    def _cross_entropy(self, hidden: Tensor, wanted: Tensor, context: LossContext) -> Tensor:
        """Weighted as the next-token loss: its weight of a target is that of any other in this call."""
        weight = context.weights.max()

        def part(rows: Tensor, targets: Tensor) -> Tensor:
            logits = context.logits(rows).float()
            return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")

        rows, flat = hidden.flatten(0, 1), wanted.flatten()
        size = context.chunk_size or len(rows)
        parts = zip(rows.split(size), flat.split(size), strict=True)
        sums = [checkpoint(part, *pair, use_reentrant=False) if context.chunk_size else part(*pair) for pair in parts]
        return torch.stack(sums).sum() * weight.to(hidden.device)

    def training_flops(self, seq_len: int) -> float:
        total = 0.0
        for step in self.steps:
            linear = 2 * sum(module.weight.numel() for module in step.modules() if isinstance(module, nn.Linear))
            block: Any = step.block
            mixing = sum(part.cost(seq_len).mixing_flops for part in (block.mixer, block.ffn) if part is not None)
            head = 2 * self.config.hidden_size * self.config.vocab_size
            total += (linear + head) * seq_len + mixing
        return total


def block_layer(config: Any) -> int:
    """The last layer that needs nothing of earlier ones, whose kind of block the modules are.

    Raises:
        ConfigError: there is none.
    """
    for index, (mixer, given) in reversed(list(enumerate(config.mixer_specs))):
        if not mixer.needs(config, given, index) and mixer.shared(config, given) is None:
            return index
    raise ConfigError("losses multi_token: every mixer needs values of other layers; add a layer whose mixer does not")


def block_config(config: Any) -> Any:
    """The config of a prediction block: a layer's parts on a plain stream, without what lies besides a block."""
    view = config.with_window(config.sliding_window)
    view.__dict__.update(stream={"type": "add"}, sites=[], embeddings=[], losses=[], depth={"type": "plain"})
    return view
