"""Repetition: how often the likeliest next token is one of the last `window` tokens."""

import torch

from hf_arch.core.options import Options, options
from hf_arch.core.registry import METRICS
from hf_arch.evaluation.metric import Metric


@options
class RepetitionOptions(Options):
    """`window`: how many tokens back count."""

    window: int = 4


@METRICS.register("idea_repetition")
class Repetition(Metric):
    Options = RepetitionOptions
    words, show, column = "repeated predictions", ".1%", "repeated"
    help = "share of positions whose likeliest next token is among the last few"

    def measure(self, model, batch, logits):
        guess, ids = logits.argmax(-1), batch["input_ids"]
        repeated = torch.zeros_like(guess, dtype=torch.bool)
        for back in range(self.options.window):
            repeated[:, back:] |= guess[:, back:] == ids[:, : ids.shape[1] - back]
        counted = batch["labels"] != -100
        return torch.stack([(repeated & counted).sum(), counted.sum()])
