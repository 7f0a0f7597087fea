"""`push_to_hub`: a trained model on the Hub, by one call, as a repository that anybody can load.

    push_to_hub("results/first/gla_1a2b3c4d5e", "alice/gla-small", private=True)

The repository is put together in a temporary folder (`repository.py`, `bundle.py`, `card.py`), looked through for
anything private, and uploaded in one commit; a second push sends what has changed, and makes no commit where nothing
has. Checkpoints of a run become branches `step-<N>`.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from hf_arch.checkpoints.checkpoint import checkpoint_folder
from hf_arch.core.errors import ConfigError
from hf_arch.hub.card import write_card
from hf_arch.hub.repository import check_nothing_private, stage_model
from hf_arch.hub.run_facts import find_run
from hf_arch.runs.files import CHECKPOINTS_DIR
from hf_arch.runs.record import RunRecord

# A model that shrank to fewer files must not leave old weights next to the new ones: they would be loaded instead.
_REPLACED = ["*.safetensors", "*.safetensors.index.json"]


@dataclass
class Push:
    """What a push did, or with a dry run would do.

    Attributes:
        url: of the repository; empty in a dry run.
        files: (branch, file, bytes) of everything that belongs there.
        commits: branch -> id of the new commit; None where nothing had changed.
    """

    repo_id: str
    url: str = ""
    files: list[tuple[str, str, int]] = field(default_factory=list)
    commits: dict[str, str | None] = field(default_factory=dict)


def push_to_hub(
    path: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    checkpoints: bool = False,
    code: bool = True,
    license: str | None = None,
) -> Push:
    """Create the repository if need be and bring it up to date.

    Args:
        path: a run folder or a saved model. repo_id: `user/name`; a bare name goes to the token's user.
        private: of a new repository; one that is public already is refused. dry_run: only say which files.
        checkpoints: also the run's checkpoints, as branches. code: so that it loads without this package.
        license: of the weights, for the card, by the Hub's short name (`apache-2.0`); None states none.

    Raises:
        ConfigError: nothing to push there, something private in it, or a name or token that the Hub does not accept.
        OSError: the Hub cannot be reached, or the connection broke; the same call continues.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(f"repo_id: {' '.join(str(error).split())}") from error
    source, run = checkpoint_folder(path), find_run(path)
    sources: dict[str, tuple[Path, int | None]] = {"main": (source, None)}
    if checkpoints:
        sources |= {f"step-{step}": (folder, step) for step, folder in _checkpoints(run)}
    push = Push(repo_id)
    with _hub_errors(repo_id), tempfile.TemporaryDirectory() as temporary:
        api = HfApi()
        if not dry_run:
            push.repo_id = _create(api, repo_id, private)
            push.url = f"{api.endpoint}/{push.repo_id}"
        for branch, (model, step) in sources.items():
            folder = Path(temporary) / branch
            folder.mkdir()
            stage_model(model, folder, code=code)
            write_card(
                folder,
                model,
                run,
                repo_id=push.repo_id,
                step=step,
                revision=None if step is None else branch,
                code=code,
                license=license,
            )
            check_nothing_private(folder)
            push.files += [(branch, file.name, file.stat().st_size) for file in sorted(folder.iterdir())]
            if not dry_run:
                push.commits[branch] = _upload(api, push.repo_id, branch, folder, step)
    return push


def _checkpoints(run: RunRecord | None) -> list[tuple[int, Path]]:
    """(step, folder) of a run's checkpoints, in order."""
    folders = [] if run is None else (run.path / CHECKPOINTS_DIR).glob("checkpoint-*")
    found = [(int(match[1]), folder) for folder in folders if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name))]
    if not found:
        raise ConfigError("--checkpoints: this model has no run folder with checkpoints next to it")
    return sorted(found)


def _create(api: HfApi, repo_id: str, private: bool) -> str:
    """The repository's full name; it exists afterwards."""
    if get_token() is None:
        raise ConfigError("token: none found; log in with `hf auth login`, or set HF_TOKEN")
    full_name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.repo_info(full_name).private:
        raise ConfigError(f"--private: {full_name} is public already; make it private on the Hub first")
    return full_name


def _upload(api: HfApi, repo_id: str, branch: str, folder: Path, step: int | None) -> str | None:
    """Bring one branch up to date; the id of the new commit, or None where nothing had changed."""
    if branch != "main":
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    before = api.repo_info(repo_id, revision=branch).sha
    done = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=branch,
        delete_patterns=_REPLACED,
        commit_message="Upload the model" if step is None else f"Upload the checkpoint at step {step}",
    )
    return None if done.oid == before else done.oid


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Says what the user can do about what the Hub or the client refuses."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConfigError("HF_HUB_OFFLINE: is set; unset it to push") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            raise ConfigError(
                "token: the Hub does not accept it; log in with `hf auth login`, or set HF_TOKEN"
            ) from error
        if status in (401, 403, 404):
            raise ConfigError(f"repo_id: the token has no right to write to {repo_id!r}") from error
        raise
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # the client's transport, httpx or httpx2
            raise
        raise ConnectionError(f"the Hub cannot be reached, or the connection broke ({error})") from error
