"""A checkpoint on disk, read without running anything that lies in it: JSON and safetensors, never a pickle. Only the
plugins that a run was trained with are imported, from the copies in its folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_arch
from hf_arch.checkpoints.plugin_copies import RUN_CONFIG, load_plugins_of
from hf_arch.core.errors import ConfigError, UnknownChoiceError, choice_error
from hf_arch.models.configuration import ArchConfig

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def model_folder(path: str | Path) -> Path:
    """`path` itself where it holds a `config.json`, else its `model/`. Raises `ConfigError` where neither does."""
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if not path.exists():
        raise ConfigError(f"{path}: no such folder")
    raise ConfigError(
        f"{path}: contains no model (looked for config.json and model/config.json); a run writes model/ when it is done"
    )


def checkpoint_folder(source: str | Path) -> Path:
    """The folder that holds the model: of a saved model, a run, or a repository on the Hub (downloaded, without its
    code). The plugins of a run are imported.

    Raises:
        ConfigError: there is no model there.
    """
    parts = str(source).split("/")
    if Path(source).exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        local = model_folder(source)
        load_plugins_of(local)
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = snapshot_download(str(source), allow_patterns=["*.safetensors", "*.json", *TOKENIZER_FILES])
    except (OSError, HFValidationError) as error:  # the Hub's own errors are OSErrors
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{source}: no such folder, and no such repository on the Hub ({reason[:160]})") from error
    return model_folder(folder)


def read_json_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: there is no such file, or it does not contain a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: does not contain a JSON object")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with a `model_type`; nothing else of it is looked at."""
    config = read_json_file(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ConfigError(f"{folder / 'config.json'}: no `model_type`")
    return config


def is_ours(config: dict[str, Any]) -> bool:
    """Whether a config.json belongs to a registered architecture."""
    return config["model_type"] in [f"hfa_{name}" for name in hf_arch.list_architectures()]


def require_ours(folder: Path) -> ArchConfig:
    """The config of a checkpoint of ours.

    Raises:
        ConfigError: it is somebody else's (with the command that converts it), of no known type, or inconsistent.
    """
    values = read_config(folder)
    load_plugins_of(folder)
    if not is_ours(values):
        raise unknown_type(folder, values)
    return load_config(folder)


def load_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint of ours or of transformers; code that lies next to it is not run.

    Raises:
        ConfigError: it is of no known type, or inconsistent.
    """
    values = read_config(folder)
    load_plugins_of(folder)
    if not is_ours(values) and values["model_type"] not in CONFIG_MAPPING:
        raise unknown_type(folder, values)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a class makes of values that it does not expect
        text = " ".join(str(error).split())[:300]
        hint = f"; where it is your own: HF_ARCH_PLUGINS={_plugins(folder)}" if _unknown_name(error) else ""
        raise ConfigError(f"{folder / 'config.json'}: {text}{hint}") from error


def _unknown_name(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is a name that nothing has registered."""
    while error is not None:
        if isinstance(error, UnknownChoiceError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _plugins(folder: Path) -> str:
    """The files that the recipe of a run's model names as plugins, for the reader of an error."""
    recipe = folder.parent / RUN_CONFIG
    files = read_json_file(recipe).get("model", {}).get("plugins") if recipe.is_file() else None
    return os.pathsep.join(files or ["FILE.py"])


def unknown_type(folder: Path, config: dict[str, Any]) -> ConfigError:
    """What is wrong with a checkpoint whose `model_type` is not one of ours."""
    from hf_arch.interchange import FOREIGN

    model_type = config["model_type"]
    if model_type in FOREIGN:
        return ConfigError(f"{folder}: a {model_type} checkpoint of another library; first: hf-arch convert SRC DST")
    allowed = {*(f"hfa_{name}" for name in hf_arch.list_architectures()), *FOREIGN}
    error = choice_error("model_type", model_type, allowed, "hf-arch list")
    if "auto_map" in config:
        return ConfigError(f"{folder}: brings its own code, which is not run; {error}")
    return error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, each checked to be whole.

    Raises:
        ConfigError: there are none, one is missing, damaged or cut short, or there are only pickles.
    """
    files = [folder / WEIGHTS]
    if not files[0].exists() and (folder / WEIGHTS_INDEX).exists():
        shards = read_json_file(folder / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ConfigError(f"{folder / WEIGHTS_INDEX}: no `weight_map`")
        names = sorted(set(shards.values()))
        if any(Path(name).name != name for name in names):
            raise ConfigError(f"{folder / WEIGHTS_INDEX}: names a file outside its folder")
        files = [folder / name for name in names]
    for file in files:
        if not file.exists():
            pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
            if pickles:
                raise ConfigError(
                    f"{folder / pickles[0]}: a pickle can run code when it is read, so it is not; "
                    "save the model as safetensors"
                )
            raise ConfigError(f"{file}: no such file")
        try:
            with safe_open(file, framework="pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: damaged or cut short ({' '.join(str(error).split())})") from error
    return files


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by name, in the dtype that it is stored in."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            tensors.update({key: opened.get_tensor(key) for key in opened.keys()})  # noqa: SIM118 (no dict)
    return tensors


def load_ours(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model of ours in eval mode, with every one of its tensors read from the checkpoint.

    Raises:
        ConfigError: the checkpoint is not ours, damaged, or does not hold what its config asks for.
    """
    require_ours(folder)
    return load_checkpoint(folder, **kwargs)


def load_checkpoint(folder: Path, **kwargs: Any) -> PreTrainedModel:
    """A model of ours or of transformers in eval mode, from safetensors alone, with nothing made up.

    Raises:
        ConfigError: the checkpoint is of no known type, damaged, or does not hold what its config asks for.
    """
    config = load_config(folder)
    weight_files(folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # which would raise without saying where; below it is told
        output_loading_info=True,
        **kwargs,
    )
    ours = is_ours({"model_type": config.model_type})
    for what in ("missing_keys", "mismatched_keys", *(["unexpected_keys"] if ours else [])):
        if info[what]:
            kind = what.removesuffix("_keys")
            raise ConfigError(f"{folder}: {len(info[what])} tensors are {kind}, e.g. {sorted(map(str, info[what]))[0]}")
    return model.eval()
