"""`hf-arch new KIND NAME`: a working part in a file of its own, its test, and a recipe that asks what it changes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.panels import LOOK
from hf_arch.core.collector import without_collection
from hf_arch.core.errors import ConfigError, choice_error
from hf_arch.core.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
CHANGES = {
    "mixer": "model.mixer: example",
    "ffn": "model.ffn: example",
    "norm": "model.norm: example",
    "position": "model.position: example",
    "stream": "model.stream: example",
    "site": "model.sites: [example]",
    "embedding": "model.embeddings: [example]",
    "depth": "model.depth: example",
    "loss": "model.losses: [example]",
    "optimizer": "training.optim: example",
    "schedule": "training.lr_scheduler_type: example",
    "init": "model.init: example",
    "metric": "metric: example",
    "column": "columns: [example]",
}
"""Kind -> what puts it into the recipe's second run, or into its question."""
KINDS = (*CHANGES, "probe")
RECIPES = {"probe": "recipe_probe.yaml", "metric": "recipe_measure.yaml", "column": "recipe_measure.yaml"}
EVALUATION = {"metric": "\nevaluation: {metrics: [example]}\n"}


def register(app: typer.Typer) -> None:
    """Enter the command into `app`."""
    app.command("new", rich_help_panel=LOOK)(new_command)


def new_command(
    kind: Annotated[str, typer.Argument(**completion.choices("|".join(KINDS)), help="Kind of part.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the part in configs, e.g. `leaky_average`.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Where the three files go.")] = ".",
) -> int:
    """Write a part of your own that works, with its test and a recipe: change the formula, and check it.

    - `hf-arch new mixer leaky_average`
    - `hf-arch new optimizer lion`
    - `hf-arch new probe echo --output ideas`
    """
    files = new_files(kind, name)
    folder = Path(output)
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise ConfigError(f"{folder / there[0]}: exists already; choose another name or --output")
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_atomic(folder / file, text)
    names = [str(folder / file) for file in files]
    print(f"written: {', '.join(names)}\n\nhf-arch check {names[0]}\nhf-arch run {names[2]} --scale cpu --dry-run")
    return 0


def new_files(kind: str, name: str) -> dict[str, str]:
    """File name -> text: the part, its test, its recipe.

    Raises:
        ConfigError: a kind that does not exist, a name that no Python name or no new one is.
    """
    if kind not in KINDS:
        raise choice_error("kind", kind, KINDS)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"name: {name!r} is not allowed; use small letters, digits and _, e.g. 'leaky_average'")
    if name in _taken(kind):
        raise ConfigError(f"name: {name!r} is a {kind} of hf_arch already; choose another one")
    templates = {
        f"{name}.py": kind + ".py",
        f"test_{name}.py": "test.py",
        f"{name}.yaml": RECIPES.get(kind, "recipe_model.yaml"),
    }
    return {file: _filled(template, kind, name) for file, template in templates.items()}


def _taken(kind: str) -> set[str]:
    """The names of this kind; parts of other kinds are not imported."""
    from hf_arch.core.registry import registries

    table = next(table for table in registries if table.kind == kind)
    with without_collection():
        if table.home is None:  # it does not know what registers here
            import hf_arch.data.probes
            import hf_arch.optimizers.choose
            import hf_arch.plugin_checks
            import hf_arch.schedules.choose  # noqa: F401
        return set(table)


def _filled(template: str, kind: str, name: str) -> str:
    text = (TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")
    text = text.replace("@CHANGE@", CHANGES.get(kind, "")).replace("@EVALUATION@", EVALUATION.get(kind, ""))
    # Not within `examples`, the number of a probe's rows.
    text = re.sub(r"(?<![A-Za-z])example(?!s\b)", name, text)
    return re.sub(
        r"\bExample(?=Options|Layer|Steps|RMSNorm|\b)", "".join(part.title() for part in name.split("_")), text
    )
