"""What `hf-arch check` takes and prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

import hf_arch
from hf_arch.checks import CheckResult, check_model
from hf_arch.cli.listing import require_architecture
from hf_arch.coordinate_check import coordinate_check
from hf_arch.evaluation.loading import parse_device
from hf_arch.file_checks import check_file
from hf_arch.recipe.overrides import config_overrides
from hf_arch.recipe.recipe import SECTIONS


def check_target(
    target: str, overrides: Sequence[str] = (), coordinates: bool = False, device: str = "cpu"
) -> dict[str, list[CheckResult]]:
    """`check_file` of a Python file, or `check_model` of the tiny config of an architecture; `overrides` (key=value)
    change the small configs. With `coordinates`, `coordinate_check` of an architecture.
    """
    place = parse_device(device)
    changes = config_overrides(overrides, SECTIONS)
    if coordinates:
        require_architecture(target, "no architecture, which --coordinates needs")
        return {target: coordinate_check(target, changes)}
    if target.endswith(".py"):
        return check_file(target, changes, place)
    require_architecture(target, "neither a Python file nor an architecture")
    return {target: check_model(hf_arch.tiny_config(target, **changes), device=place)}


def print_checks(title: str, results: list[CheckResult]) -> None:
    """The results as a table; under it, where to look for each that failed."""
    console = Console(highlight=False)
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in results:
        table.add_row("[green]ok[/]" if result.passed else "[bold red]fails[/]", result.name, result.found)
    console.print(table)
    for result in results:
        if not result.passed:
            console.print(f"{result.name}: {result.hint}", markup=False, soft_wrap=True)
