"""`hf-arch probe`: small models of several architectures on synthetic tasks, compared like any other runs.

Each task is a set of its own: runs by architecture, an equal sweep of learning rates, seeds; the report shows accuracy
against parameters and against bytes of state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson, Engine, Match, Slurm
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.cli.panels import TRAIN
from hf_arch.cli.plugins import load_override_plugins
from hf_arch.core.errors import ConfigError

Architectures = Annotated[
    list[str],
    typer.Argument(
        metavar="ARCH... [KEY=VALUE]...",
        help="Architectures, then changes to their recipe.",
        autocompletion=completion.architectures,
    ),
]
Task = Annotated[list[str], typer.Option("--task", help="A probe, e.g. `mqar`, `parity`; may be repeated.")]
Setting = Annotated[
    str,
    typer.Option(
        **completion.choices("cpu|paper|SOURCE"),
        help="`cpu`: small enough for two cores; `paper`: as published; or a source: `zoology`, `mad`, `gu-dao`.",
    ),
]
Width = Annotated[int, typer.Option(min=1, help="Width of the models.")]
Layers = Annotated[int, typer.Option(min=1, help="Layers of the models.")]
LearningRates = Annotated[
    list[float] | None,
    typer.Option(
        help="Learning rate of every run; repeat the option to try several. Default 3e-3, or the source's sweep."
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of seeds.")]
ResultsDir = Annotated[str, typer.Option(help="Folder for the runs, with one folder a task in it.")]
Workers = Annotated[int, typer.Option(min=1, help="Runs at a time.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the runs, their sizes and their cost; train nothing.")]

TOLERANCE = 0.02  # one more channel of a model this small is more than a hundredth of it


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("probe", rich_help_panel=TRAIN)(probe_command)


def probe_command(
    architectures: Architectures,
    task: Task,
    setting: Setting = "cpu",
    width: Width = 64,
    layers: Layers = 2,
    learning_rate: LearningRates = None,
    seeds: Seeds = 1,
    match: Match = None,
    results_dir: ResultsDir = "results/probes",
    workers: Workers = 1,
    engine: Engine = "local",
    slurm: Slurm = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Train small models on synthetic tasks: what can an architecture recall, copy, compress, or keep track of?

    Models have one head of their width and, except for the tasks of MAD, no FFN. Finished runs are kept.

    - `hf-arch probe llama gla mamba delta_net --task mqar --learning-rate 1e-3 --learning-rate 3e-3`
    """
    with only_results_on_stdout():
        from hf_arch.experiments.execution.runner import RunOptions, processes_per_run
        from hf_arch.experiments.planning.forecast import document, step_timer
        from hf_arch.recipe.recipe import read_recipe
        from hf_arch.report.conclude import run_and_conclude
        from hf_arch.report.preview import preview, print_forecast

    options = RunOptions(workers, engine, slurm=tuple(slurm or ()))
    names = [name for name in architectures if "=" not in name]
    overrides = [text for text in architectures if "=" in text]
    load_override_plugins(overrides)
    sets = [
        read_recipe(probe_recipe(names, entry, setting, width, layers, learning_rate, seeds, match), overrides)
        for entry in dict.fromkeys(task)
    ]
    failed, forecasts, compared = [], [], {}
    with only_results_on_stdout(as_json):
        timer = step_timer(workers * processes_per_run(options)) if dry_run else None
        for recipe in sets:
            folder = Path(results_dir) / recipe.experiment.name
            if dry_run:
                forecasts += preview(recipe, folder, workers, processes_per_run(options), timer=timer)
                print_forecast(forecasts[-1])
                continue
            trained, comparison = run_and_conclude(recipe, folder, options)
            compared[recipe.experiment.name] = {} if comparison is None else comparison.to_dict()
            failed += trained.failed
    if as_json:
        print_json(document(forecasts) if dry_run else {"sets": compared})
    return 1 if failed else 0


def probe_recipe(
    architectures: list[str],
    task: str,
    setting: str,
    width: int,
    layers: int,
    rates: list[float] | None,
    seeds: int,
    match: str | None,
) -> dict[str, Any]:
    """The recipe of one task, as plain values; `rates` None: the sweep of the setting's source, else 3e-3. Raises
    `ConfigError` for a task or setting that does not exist."""
    from hf_arch.data.probes import MAD, PROBES

    if not architectures:
        raise ConfigError(
            "ARCH: none given; name at least one architecture, e.g. `hf-arch probe llama gla --task mqar`"
        )
    probe = PROBES.get(task, "--task")
    # The single block of Zoology is a mixer alone; MAD alternates mixer and SwiGLU.
    ffn = "glu" if probe in MAD else "none"
    source = probe.setting(setting).source
    sweep = dict(source.sweep) if source is not None else {}
    sweep["learning_rate"] = tuple(rates or sweep.get("learning_rate", (3e-3,)))
    dropouts = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)
    for name in () if source is None else (*source.model, *source.attention):
        dropouts.pop(name, None)
    model = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 1, "head_dim": width, "ffn": ffn}
    return {
        "model": {**model, **dropouts},
        "probe": {"task": task, "setting": setting},
        "training": {key: values[0] for key, values in sweep.items() if len(values) == 1},
        "experiment": {
            "name": task,
            "hypothesis": probe.question,
            "description": f"The probe {task} at its {setting} setting, {layers} layers of width {width}.",
            "runs": {name: {"model": {"architecture": name}} for name in dict.fromkeys(architectures)},
            "seeds": seeds,
            "matrix": {f"training.{key}": list(values) for key, values in sweep.items() if len(values) > 1},
            **({"match": {"by": match, "tolerance": TOLERANCE}} if match else {}),
        },
    }
