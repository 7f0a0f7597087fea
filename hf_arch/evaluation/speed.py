"""Inference speed by doing it: `generate` with its cache, timed token by token; medians, since single timings are
noisy.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.generation import BaseStreamer

DECODED = 100
"""Single tokens whose median is the speed of decoding."""
WARM_UP = 4
"""Tokens that are decoded before any counts."""


@dataclass(frozen=True)
class InferenceSpeed:
    """Tokens per second at batch size 1: `prefill` reading `tokens` tokens at once, `decode` writing as many one by
    one.
    """

    prefill: float
    decode: float
    tokens: int


class _TokenClock(BaseStreamer):
    """Notes the time at which generate() hands over each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to flush."""


@torch.no_grad()
def measure_inference(
    model: PreTrainedModel, prompt: torch.Tensor, tokens: int = 64, repeats: int = 3
) -> InferenceSpeed:
    """Prefill and decode speed of `model` for a `prompt` [1, T] of token ids. The first round, of a few tokens, warms
    up and is not counted; no further tokens are decoded once there are `DECODED`.
    """
    was_training = model.training
    model.eval()
    prompt = prompt.to(model.device)
    mask = torch.ones_like(prompt)
    prefills: list[float] = []
    intervals: list[float] = []
    options: dict[str, Any] = {
        "do_sample": False,
        "pad_token_id": 0,
        "use_cache": True,
    }
    try:
        for counted in [False] + [True] * repeats:
            clock = _TokenClock()
            _synchronize(model.device)
            start = time.perf_counter()
            model(prompt, attention_mask=mask, use_cache=True, logits_to_keep=1)
            _synchronize(model.device)
            prefill = time.perf_counter() - start
            if counted:
                prefills.append(prefill)
            if len(intervals) >= DECODED:
                continue
            length = tokens if counted else min(tokens, WARM_UP)
            options |= {"max_new_tokens": length, "min_new_tokens": length}
            model.generate(prompt, attention_mask=mask, streamer=clock, **options)
            # The clock's first time is the prompt itself, the second the token that prefill gives.
            if counted:
                intervals += [after - before for before, after in zip(clock.times[1:], clock.times[2:], strict=False)]
    finally:
        model.train(was_training)
    return InferenceSpeed(
        prefill=prompt.shape[1] / statistics.median(prefills),
        decode=1 / statistics.median(intervals),
        tokens=tokens,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
