"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion

Recipe = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A YAML recipe, or the name of one (`hf-arch list --recipes`).",
        autocompletion=completion.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, e.g. `training.max_steps=100`.")
]
Scale = Annotated[str | None, typer.Option(help="A size the recipe declares, e.g. `cpu`.")]
RunName = Annotated[str | None, typer.Option("--run", help="Which run, of a recipe that declares several.")]
Match = Annotated[
    str | None,
    typer.Option(
        **completion.choices("parameters|flops|state"), help="Make the models equal in this by adjusting their widths."
    ),
]
Engine = Annotated[
    str, typer.Option(**completion.choices("local|slurm"), help="Processes here, or jobs of a Slurm cluster.")
]
Slurm = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A parameter of the jobs, e.g. `slurm_partition=gpu`; may be repeated."),
]
Distributed = Annotated[
    str,
    typer.Option(
        **completion.choices("auto|always|never"),
        help="`auto` takes what was launched; `always` launches a process for each GPU, at least two, where nothing "
        "else did; `never` stops where several were launched.",
    ),
]
SavedDtype = Annotated[str, typer.Option(help="Precision of the weights: `fp32`, `bf16`, `fp16`; `auto`: as saved.")]
Device = Annotated[str | None, typer.Option(help="`cpu`, `cuda`, ...; by default the GPU, if there is one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what would be done, with hours on this device, memory and disk; write nothing."
    ),
]
