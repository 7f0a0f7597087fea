"""A model for others to load: a repository with its own code, or one file, GGUF or a program of torch.export."""

from __future__ import annotations

from pathlib import Path

from hf_arch.checkpoints.checkpoint import checkpoint_folder, load_ours
from hf_arch.core.errors import ConfigError
from hf_arch.hub.card import write_card
from hf_arch.hub.gguf_file import write_gguf
from hf_arch.hub.repository import check_nothing_private, new_folder, stage_model
from hf_arch.hub.run_facts import find_run
from hf_arch.hub.torch_export import write_program


def export_hub(path: str | Path, output: str | Path | None = None, *, license: str | None = None) -> Path:
    """Write a repository that `trust_remote_code=True` loads without this package; returns its folder.

    Args:
        path: a run folder or a saved model. output: a new or empty folder; by default `hub/` in `path`.
        license: of the weights, for the card; None states none.

    Raises:
        ConfigError: no model there, `output` is not empty, or something private would be shared.
    """
    source = checkpoint_folder(path)
    target = Path(path) / "hub" if output is None else Path(output)
    with new_folder(target, "--output") as folder:
        stage_model(source, folder)
        write_card(folder, source, find_run(path), repo_id=target.resolve().name, license=license)
        check_nothing_private(folder)
    return target


def export_gguf(path: str | Path, output: str | Path | None = None) -> Path:
    """Write a Llama-like model as one GGUF file in fp32; returns its path.

    Args:
        path: a run folder or a saved model. output: a file that does not exist; by default `model.gguf` in `path`.

    Raises:
        ConfigError: no model there, `output` exists, or a component that GGUF cannot hold, by name.
    """
    source = checkpoint_folder(path)
    model, file = load_ours(source), _new_file(path, output, "model.gguf")
    write_gguf(model, source, file)
    return file


def export_torch(path: str | Path, output: str | Path | None = None) -> Path:
    """Write the forward pass of an attention model as one archive for `torch.export.load`; returns its path.

    Args:
        path: a run folder or a saved model. output: a file that does not exist; by default `model.pt2` in `path`.

    Raises:
        ConfigError: no model there, `output` exists, or a mixer that cannot be exported, by name.
    """
    model, file = load_ours(checkpoint_folder(path)), _new_file(path, output, "model.pt2")
    write_program(model, file)
    return file


def _new_file(path: str | Path, output: str | Path | None, name: str) -> Path:
    file = Path(path) / name if output is None else Path(output)
    if file.exists():
        raise ConfigError(f"--output: {file} exists; name another file")
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
