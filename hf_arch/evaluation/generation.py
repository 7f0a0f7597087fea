"""Text from a trained model: sampled or greedy, reproducible by a seed, streamed as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from hf_arch.core.errors import ConfigError
from hf_arch.evaluation.special_tokens import prompt_ids


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn: `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 leave the distribution
    whole; a `repetition_penalty` above 1 makes tokens less likely that have been there. Text ends before the first of
    the strings `stop`.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p < 1, "0 (off) or more, and below 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0 (1: off)"),
            ("stop", all(self.stop), "text that is not empty"),
        )
        for name, good, expected in checks:
            if not good:
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)}")

    def generate_kwargs(self) -> dict[str, Any]:
        """The same as keyword arguments of `generate`; every knob is stated, so that a saved generation config adds
        nothing.
        """
        common = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return {**common, "do_sample": False}
        return {
            **common,
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }


@dataclass(frozen=True)
class Generated:
    """A continuation: its text without the prompt, its number of tokens, and the seconds it took."""

    text: str
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Prompt reading included."""
        return self.tokens / self.seconds if self.seconds else 0.0


class _CallbackStreamer(TextStreamer):
    """Hands finished pieces of text to a function instead of printing them, up to the first of the strings `stop`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None], stop: Sequence[str] = ()
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write, self.stop = write, stop
        self.held, self.stopped = "", False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.stopped:
            return
        text = self.held + text
        kept = cut_at_stop(text, self.stop)
        self.stopped = len(kept) < len(text)
        # The end of what is here may be the beginning of a stop string.
        wait = 0 if self.stopped or stream_end else _begun(kept, self.stop)
        self.held = kept[len(kept) - wait :]
        if len(kept) > wait:
            self.write(kept[: len(kept) - wait])


class _StopOnText(StoppingCriteria):
    """Ends a row once its new text holds one of the strings `stop`.

    transformers' own `stop_strings` asks the tokenizer to encode letters, which a character vocabulary may lack.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], prompt_length: int) -> None:
        self.tokenizer, self.stop, self.prompt_length = tokenizer, stop, prompt_length
        # A token is a byte at least; one more, since some tokenizers strip the space before the first.
        self.reach = max(len(word.encode()) for word in stop) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        tails = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.reach) :]
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=True)
        found = [any(word in text for word in self.stop) for text in texts]
        return torch.tensor(found, device=input_ids.device)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """`text` before the first of the strings `stop`."""
    places = [place for place in map(text.find, stop) if place >= 0]
    return text[: min(places)] if places else text


def _begun(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that begin one of the strings `stop`."""
    sizes = (size for word in stop for size in range(1, len(word)) if text.endswith(word[:size]))
    return max(sizes, default=0)


def read_prompts(prompt: str | None, file: str | None) -> list[str]:
    """The one prompt, or the lines of the file, without empty ones. Raises `ConfigError` where it is not one of both,
    or the file cannot be read or has none.
    """
    if (prompt is None) == (file is None):
        raise ConfigError("generate: give either --prompt or --prompt-file")
    if prompt is not None:
        return [prompt]
    assert file is not None
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--prompt-file: {file}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ConfigError(f"--prompt-file: {file}: there are no prompts in it")
    return prompts


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    options: SamplingOptions,
    write: Callable[[str], None] | None = None,
) -> Generated:
    """Continues `prompt`; pieces of text go to `write` as they are ready. The same seed gives the same text.

    Raises `ConfigError` where the prompt has no tokens, or does not fit a model with learned positions.
    """
    streamer = _CallbackStreamer(tokenizer, write, options.stop) if write else None
    return _generate(model, tokenizer, [prompt], options, streamer)[0]


def generate_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: SamplingOptions,
    batch_size: int = 8,
) -> Iterator[Generated]:
    """Continues each prompt, `batch_size` at a time (padded on the left); greedy text does not depend on the others.

    The seconds of a batch are shared equally by its prompts. Raises as `generate_text`.
    """
    for start in range(0, len(prompts), batch_size):
        yield from _generate(model, tokenizer, prompts[start : start + batch_size], options, None)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    options: SamplingOptions,
    streamer: TextStreamer | None,
) -> list[Generated]:
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ConfigError(f"prompt: {prompt!r} gives no tokens; write at least one character")
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    length = max(map(len, rows))
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
    kwargs = options.generate_kwargs()
    if options.stop:
        kwargs["stopping_criteria"] = StoppingCriteriaList([_StopOnText(tokenizer, options.stop, length)])
    devices = [model.device] if model.device.type == "cuda" else []
    start = time.perf_counter()
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(options.seed)
        output = model.generate(ids, attention_mask=mask, streamer=streamer, pad_token_id=pad, **kwargs)
    seconds = (time.perf_counter() - start) / len(prompts)
    end = _end_tokens(model)
    written = [_until_end(row[length:].tolist(), end, pad) for row in output]
    texts = [cut_at_stop(tokenizer.decode(row, skip_special_tokens=True), options.stop) for row in written]
    return [Generated(text, len(row), seconds) for text, row in zip(texts, written, strict=True)]


def _end_tokens(model: PreTrainedModel) -> set[int]:
    end = model.generation_config.eos_token_id
    return set(end if isinstance(end, list) else [end] if end is not None else [])


def _until_end(tokens: list[int], end: set[int], pad: int) -> list[int]:
    """`tokens` up to and with the first that ends a text, without the padding that follows in a batch."""
    places = [place for place, token in enumerate(tokens) if token in end]
    if places:
        return tokens[: places[0] + 1]
    while tokens and tokens[-1] == pad:
        tokens = tokens[:-1]
    return tokens
