"""What a checkpoint says of the run that wrote it: `hf_arch_run.json`, in its own folder.

The record is written before Trainer's files and closed, with size and hash of each file, after the last one. So a
checkpoint whose saving was cut off is known (it is passed over), and so is one that lost something later (refused).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_arch.core.errors import ConfigError
from hf_arch.core.files import write_json
from hf_arch.training.checkpoints import STATE_FILE
from hf_arch.training.identity import RunIdentity

RECORD_FILE = "hf_arch_run.json"
FORMAT = 1
HASHED_BYTES = 1 << 19  # of each end of a file: enough to know another model's weights by
# What Trainer needs to go on exactly, by patterns of which one has to be there.
NEEDED = {
    "weights": ("*.safetensors", "pytorch_model*", "*/*.distcp", "global_step*"),
    "optimizer state": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "scheduler state": ("scheduler.pt", "global_step*"),
    "random number state": ("rng_state*.pth",),
    "trainer state": (STATE_FILE,),
}


@dataclass(frozen=True)
class Change:
    """What is not as it was when the run was begun: from `step` on, `key` is `now` instead of `begun`."""

    step: int
    key: str
    begun: Any
    now: Any
    note: str = ""


@dataclass(frozen=True)
class CheckpointRecord:
    """What a checkpoint says of the run that wrote it. `files` ({name: [bytes, hash]}) is None while it is written.

    progress: what of the trainer's own state Trainer does not keep (`ArchTrainer.progress`).
    """

    step: int
    identity: RunIdentity
    environment: Mapping[str, Any]
    changes: tuple[Change, ...] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Any] | None = None

    def write(self, checkpoint: Path) -> None:
        """Writes the record into the folder of its checkpoint, atomically."""
        values = {**dataclasses.asdict(self), "identity": self.identity.to_dict()}
        write_json(checkpoint / RECORD_FILE, {"format": FORMAT, **values})

    def close(self, checkpoint: Path) -> None:
        """Writes it again with the files that the checkpoint holds now: it is whole."""
        dataclasses.replace(self, files=_files(checkpoint)).write(checkpoint)

    @classmethod
    def read(cls, checkpoint: Path) -> CheckpointRecord:
        """The record of a checkpoint. Raises `ConfigError` where there is none that this version can read."""
        try:
            values = json.loads((checkpoint / RECORD_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise unusable(
                checkpoint,
                f"has no {RECORD_FILE}, so what it was trained with is not known (an older hf_arch wrote none)",
            ) from None
        except (OSError, ValueError):
            raise unusable(checkpoint, f"has a {RECORD_FILE} that cannot be read") from None
        try:
            if values.pop("format") > FORMAT:
                raise unusable(checkpoint, "was written by a newer hf_arch, which is needed to continue from it")
            values["identity"] = RunIdentity.from_dict(values["identity"])
            values["changes"] = tuple(Change(**change) for change in values["changes"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError):
            raise unusable(checkpoint, f"has a {RECORD_FILE} that is incomplete") from None


def find_checkpoint(checkpoints: Path) -> tuple[Path, CheckpointRecord] | None:
    """The newest checkpoint and its record; None where none was ever saved whole.

    Raises `ConfigError` for a newest checkpoint that is not what was saved: a file is missing, shorter or another one.
    """
    folders = sorted(checkpoints.glob("checkpoint-*"), key=step_of, reverse=True)
    for folder in folders:
        if not folder.is_dir() or not any(path.name != RECORD_FILE for path in folder.rglob("*") if path.is_file()):
            continue
        record = CheckpointRecord.read(folder)
        missing = [what for what, patterns in NEEDED.items() if not any(any(folder.glob(p)) for p in patterns)]
        if record.files is None:  # saving was cut off; whole all the same where that was after its last file
            if missing or _state(folder) is None:
                continue
        else:
            missing += [name for name in record.files if not (folder / name).is_file()]
            if missing:
                raise unusable(folder, f"has no {', no '.join(missing)}")
            for name, known in _files(folder).items():
                if name in record.files and known != record.files[name]:
                    short = known[0] < record.files[name][0]
                    raise unusable(folder, f"has a {name} that is {'cut short' if short else 'not the one it saved'}")
        return folder, record
    return None


def unusable(checkpoint: Path, why: str) -> ConfigError:
    """The error of a checkpoint that a run cannot go on from exactly."""
    return ConfigError(
        f"--resume: {checkpoint} {why}; to continue from an older checkpoint remove that folder, else begin a new run"
    )


def _files(checkpoint: Path) -> dict[str, list[Any]]:
    """[bytes, hash] of each file below a checkpoint, but for the record."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / RECORD_FILE)
    return {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, _ends_hash(path)] for path in paths}


def _ends_hash(path: Path) -> str:
    """Hash of the first and the last `HASHED_BYTES` of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(HASHED_BYTES))
        if (size := path.stat().st_size) > HASHED_BYTES:
            file.seek(max(HASHED_BYTES, size - HASHED_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def _state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / STATE_FILE).read_text())
    except (OSError, ValueError):
        return None


def step_of(checkpoint: Path) -> int:
    """The optimiser step of a checkpoint: by its files, as a folder can be renamed, else by its name."""
    for name, key in ((RECORD_FILE, "step"), (STATE_FILE, "global_step")):
        try:
            return int(json.loads((checkpoint / name).read_text())[key])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
