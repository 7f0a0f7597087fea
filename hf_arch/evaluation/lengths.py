"""Loss by the length of the context, also beyond the trained one: `evaluation.lengths: [128, 256, 512, 1024]`.

For each length L the held-out text is cut into rows of L + 1 tokens, so that every position has a target, and each row
is shown from its first token; where documents are isolated, a row is of one document. The loss by position then says
where a model stops profiting from context, and whether it breaks past the length that it was trained at.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from hf_arch.core.errors import ConfigError
from hf_arch.data.dataset import MixedDataset, TokenDataset, first_of_each
from hf_arch.evaluation.windows import PositionLoss, loss_by_position

LEAST_ROWS = 2


def check_lengths(lengths: tuple[int, ...], config: PreTrainedConfig, validation: TokenDataset | MixedDataset) -> None:
    """Raises `ConfigError` where a length cannot be measured: no text for two rows, or no positions."""
    tokens = max((len(part.stream) for part in _parts(validation)), default=0)
    for length in lengths:
        rows = sum(len(_starts(span, length)) for part in _parts(validation) for span in part.spans())
        if rows < LEAST_ROWS and validation.isolate_documents:
            raise ConfigError(
                f"evaluation.lengths: {length} needs {LEAST_ROWS} rows of {length + 1} tokens within documents, which "
                f"data.isolate_documents keeps apart, and the held-out text has {rows}; use shorter lengths"
            )
        if rows < LEAST_ROWS:
            raise ConfigError(
                f"evaluation.lengths: {length} needs {LEAST_ROWS * (length + 1)} tokens of held-out text and there are "
                f"{tokens}; nearest: {max(tokens // LEAST_ROWS - 1, 1)}"
            )
        if getattr(config, "position", None) == "learned" and length > config.max_position_embeddings:
            raise ConfigError(
                f"evaluation.lengths: {length} is beyond the {config.max_position_embeddings} learned positions; give "
                "the model more (model.max_position_embeddings), or another position; nearest: "
                f"{config.max_position_embeddings}"
            )


def losses_by_length(
    model: PreTrainedModel, validation: TokenDataset | MixedDataset, lengths: tuple[int, ...], tokens: int
) -> dict[str, Any]:
    """{length: `loss`, `rows`, `loss_by_position` ([first, last, nats]), `last_quarter`} in nats per token.

    Args:
        tokens: of held-out text, at most, that each length is measured on; at least two rows are.
    """
    found = {}
    for length in lengths:
        curve = loss_by_position(model, _rows(validation, length, tokens), batch_size=max(1, 2048 // length))
        found[str(length)] = _numbers(curve)
    return found


def _rows(validation: TokenDataset | MixedDataset, length: int, tokens: int) -> list[Tensor]:
    wanted = max(LEAST_ROWS, tokens // (length + 1))
    parts = _parts(validation)
    starts = [[start for span in part.spans() for start in _starts(span, length)] for part in parts]
    counts = first_of_each([len(each) for each in starts], wanted)
    return [
        torch.from_numpy(part.stream.read(start, start + length + 1))
        for part, each, count in zip(parts, starts, counts, strict=True)
        for start in each[:count]
    ]


def _starts(span: tuple[int, int], length: int) -> range:
    """Where the rows of `length` + 1 tokens begin that fit into a span."""
    return range(span[0], span[1] - length, length + 1)


def _numbers(curve: PositionLoss) -> dict[str, Any]:
    quarter = max(1, curve.mean.numel() // 4)
    return {
        "loss": curve.mean.mean().item(),
        "rows": curve.rows,
        "loss_by_position": [list(bucket) for bucket in curve.buckets()],
        "last_quarter": curve.mean[-quarter:].mean().item(),
    }


def _parts(validation: TokenDataset | MixedDataset) -> list[TokenDataset]:
    return list(validation.datasets) if isinstance(validation, MixedDataset) else [validation]
