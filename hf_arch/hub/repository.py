"""What a shared model consists of: weights, tokenizer, configs and code, and nothing of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from hf_arch.checkpoints.checkpoint import (
    TOKENIZER_FILES,
    WEIGHTS_INDEX,
    read_config,
    read_json_file,
    require_ours,
    weight_files,
)
from hf_arch.core.errors import ConfigError
from hf_arch.hub.bundle import bundle

# transformers and tokenizers note where they were loaded from.
_PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "merges_file", "cache_dir", "is_local")
# Their words come from training text, where a slash or a folder's name is nothing but text.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json")
_HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{20,}")
_SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|ACCESS_KEY)$", re.IGNORECASE)


@contextmanager
def new_folder(path: str | Path, option: str) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends; where it fails, nothing is left behind.

    Raises:
        ConfigError: something is at `path` already; names `option`.
    """
    target = Path(path)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ConfigError(f"{option}: {target} exists and is not empty; name another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hf_arch_") as temporary:
        written = Path(temporary) / target.name
        written.mkdir()
        yield written
        os.replace(written, target)


def stage_model(source: Path, folder: Path, *, code: bool = True) -> None:
    """Copy a saved model's files into `folder`, with the code that loads it anywhere unless `code` is off.

    Raises:
        ConfigError: `source` does not contain a complete model of ours.
    """
    config = require_ours(source)
    for file in weight_files(source):
        shutil.copyfile(file, folder / file.name)
    if (source / WEIGHTS_INDEX).exists():
        shutil.copyfile(source / WEIGHTS_INDEX, folder / WEIGHTS_INDEX)
    copy_tokenizer(source, folder)
    if (source / "generation_config.json").exists():
        write_json(folder / "generation_config.json", read_json_file(source / "generation_config.json"))
    else:
        GenerationConfig.from_model_config(config).save_pretrained(folder)
    values = read_config(source)
    values.pop("auto_map", None)
    if code:
        made = bundle(config)
        made.write(folder)
        values["auto_map"] = made.auto_map
    write_json(folder / "config.json", values)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy whatever tokenizer files there are."""
    for name in TOKENIZER_FILES:
        if not (source / name).exists():
            continue
        if name == "tokenizer_config.json":
            write_json(folder / name, read_json_file(source / name))
        else:
            shutil.copyfile(source / name, folder / name)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a config without the keys that hold folders of this machine."""
    kept = {key: value for key, value in values.items() if key not in _PATH_KEYS}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def check_nothing_private(folder: Path) -> None:
    """Look through every file about to be shared for the home folder, Hub tokens and secrets of the environment.

    Raises:
        ConfigError: names the file and what kind of thing it holds, never the thing itself.
    """
    home = f"{Path.home()}{os.sep}".encode()
    secrets = [value.encode() for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 8]
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = _header(path) if path.suffix == ".safetensors" else path.read_bytes()
        if _HUB_TOKEN.search(content) or any(secret in content for secret in secrets):
            raise ConfigError(f"{path.name}: contains a token or secret of this environment; it is not shared")
        if len(home) > 2 and home in content and path.name not in _VOCABULARIES:
            raise ConfigError(f"{path.name}: contains the path of your home folder; it is not shared")


def _header(path: Path) -> bytes:
    """The JSON header of a safetensors file, which may hold any text."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))
