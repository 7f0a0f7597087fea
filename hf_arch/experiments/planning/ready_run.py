"""A run that is planned to its folder and its first file, which its process begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_arch.checkpoints.plugin_copies import write_copies
from hf_arch.core.files import write_json
from hf_arch.core.plugin_source import PluginSource
from hf_arch.recipe.recipe import RUN_FACTS
from hf_arch.runs.files import CONFIG_FILE, RESULTS_FILE
from hf_arch.runs.record import RunRecord, read_results


@dataclass(frozen=True)
class ReadyRun:
    """A run with the folder that it will fill. `config` is what its experiment_config.json begins as: a recipe of one
    run, with nothing left to plan. `plugins` are the files that it uses, as they were read while it was planned."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    steps: int | None = None
    plugins: tuple[PluginSource, ...] = ()

    def write_config(self) -> None:
        """Writes what the process of the run begins with: its plugins, and its experiment_config.json."""
        write_copies(self.folder, (self.config.get(RUN_FACTS) or {}).get("plugins") or {}, self.plugins)
        write_json(self.folder / CONFIG_FILE, self.config)

    @property
    def record(self) -> RunRecord | None:
        """What it has written; None before it has."""
        return read_results(self.folder)

    @property
    def status(self) -> str | None:
        """What its results file says, or None before there is one."""
        record = self.record
        return None if record is None else record.status

    @property
    def written(self) -> int | None:
        """When its results file was written last, in ns; None before there is one."""
        file = self.folder / RESULTS_FILE
        return file.stat().st_mtime_ns if file.is_file() else None

    @property
    def reason(self) -> str:
        """Why the run ended as it did, in its own words."""
        record = self.record
        return (record.exit_reason if record is not None else None) or "ended before it wrote any results"
