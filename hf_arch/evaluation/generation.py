"""Text from a trained model: sampled or greedy, reproducible by a seed, streamed as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from hf_arch.errors import ConfigError


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn: `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        )
        for name, good, expected in checks:
            if not good:
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)}")

    def generate_kwargs(self) -> dict[str, Any]:
        """The same as keyword arguments of `generate`; every knob is stated, so that a saved generation config adds
        nothing.
        """
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": True,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
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
    """Hands finished pieces of text to a function instead of printing them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text)


def load_model(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from a run folder or a saved model's folder, on the GPU where there is one.

    Raises `ConfigError` where the folder holds neither.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no tokenizer that can be loaded: {' '.join(str(error).split())[:200]}") from error
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def model_folder(path: str | Path) -> Path:
    """`path` itself where it holds a `config.json`, else its `model/`. Raises `ConfigError` where neither does."""
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise ConfigError(f"{path}: no such folder")
    raise ConfigError(
        f"{path}: holds no model (looked for config.json and model/config.json); a run writes model/ when it is done"
    )


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
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1]
    if length == 0:
        raise ConfigError(f"prompt: {prompt!r} gives no tokens; write at least one character")
    inputs = inputs.to(model.device)
    streamer = _CallbackStreamer(tokenizer, write) if write else None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    devices = [model.device] if model.device.type == "cuda" else []
    start = time.perf_counter()
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(options.seed)
        output = model.generate(**inputs, streamer=streamer, pad_token_id=pad, **options.generate_kwargs())
    new = output[0, length:]
    return Generated(tokenizer.decode(new, skip_special_tokens=True), int(new.numel()), time.perf_counter() - start)
