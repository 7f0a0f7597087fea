"""Our models in lm_eval, the language-model evaluation harness of EleutherAI.

    python -m hf_arch.lm_eval --model hf_arch --model_args pretrained=PATH --tasks hellaswag

`hf_arch` takes what lm_eval's `hf` takes, where `pretrained` may also be a run folder or a checkpoint of
flash-linear-attention. (`--model hf` reads a saved model of ours too, once something has imported hf_arch.) lm_eval has
no entry points for models: importing this module enters ours into its registry.

Batches: log-likelihoods are taken of rows padded on the right, where a causal model does not look; generation pads on
the left with a mask, which every mixer honours. So a score does not depend on the batch size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

import hf_arch
from hf_arch.checkpoints.checkpoint import checkpoint_folder, is_ours, read_config, weight_files
from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.compat import HookedLM, get_dtype, register_model
from hf_arch.evaluation.loading import load_causal_lm, load_tokenizer, parse_device
from hf_arch.evaluation.special_tokens import split_special
from hf_arch.interchange import FOREIGN

hf_arch.list_architectures()  # registers them with the Auto classes that HFLM loads by


@register_model("hf_arch")
class ArchLM(HookedLM):
    """lm_eval's `hf`, for runs and foreign checkpoints as well.

    Args:
        pretrained: a run folder, a saved model, a Hub id, a checkpoint of flash-linear-attention, or a model.
        device: None takes the GPU where there is one.
        tokenizer, dtype and all others: as lm_eval's HFLM has them.

    Attributes:
        cut: the texts of the requests whose contexts were longer than the model takes, so far.

    Raises:
        ConfigError: nothing there, or nothing that can be loaded.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: Any = None,
        dtype: str | torch.dtype | None = "auto",
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        target = str(device or parse_device(None))
        if isinstance(pretrained, str) and not kwargs.get("gguf_file"):
            folder = checkpoint_folder(pretrained)
            config = read_config(folder)
            if not is_ours(config) and config["model_type"] in FOREIGN and not _known(config["model_type"]):
                tokenizer = tokenizer or load_tokenizer(folder)
                model = load_causal_lm(folder)
                weights = get_dtype(dtype)
                pretrained = model.to(target, weights if isinstance(weights, torch.dtype) else None)
            else:
                weight_files(folder)  # whole, and no pickles
                pretrained = str(folder)
        self.cut: set[tuple[Any, ...]] = set()
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, dtype=dtype, device=target, **kwargs)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """As HFLM's, without what a tokenizer puts after a text: no context or answer ends with an end token."""
        wanted = self.add_bos_token is not False if add_special_tokens is None else add_special_tokens
        before, ids = split_special(self.tokenizer, string)
        return [*(before if wanted else []), *ids][-left_truncate_len if left_truncate_len else None :]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, mask), both int64 [B, T], of `tok_encode`."""
        rows = [self.tok_encode(string) for string in strings]
        if truncation:
            rows = [row[: self.max_length] for row in rows]
        if left_truncate_len:
            pairs = zip(strings, rows, strict=True)
            self.cut.update((string,) for string, row in pairs if len(row) > left_truncate_len)
        batch = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        keep = slice(-left_truncate_len if left_truncate_len else None, None)
        return batch["input_ids"][:, keep], batch["attention_mask"][:, keep]

    @property
    def max_gen_toks(self) -> int:
        """Tokens to write where a task does not say: lm_eval's 256, less where the context would be all answer."""
        return min(super().max_gen_toks, self.max_length // 2)

    def score_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        longest = max((len(continuation) for _, _, continuation in requests), default=0)
        if longest > self.max_length:
            raise ConfigError(
                f"max_position_embeddings: {self.max_length} is too short for an answer of {longest} tokens; "
                "leave that task out, or train with a longer context"
            )
        self.cut.update(
            tuple(texts)
            for texts, context, continuation in requests
            if texts is not None and len(context) + len(continuation) > self.max_length + 1
        )
        return super().score_tokens(requests, *args, **kwargs)

    def is_cut(self, arguments: Any) -> bool:
        """Whether a request had the beginning of its context left out, which was too long for the model. `arguments`:
        (context, continuation), or (context, how to generate)."""
        return tuple(arguments) in self.cut if isinstance(arguments[1], str) else tuple(arguments[:1]) in self.cut


def _known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING
