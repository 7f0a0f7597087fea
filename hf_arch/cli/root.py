"""`hf-arch`: the command line. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; a run that was told to
stop ends with 143 (SIGTERM) or 130 (SIGINT), and can be resumed.

A mistake of the user is one line on stderr; results go to stdout, progress to stderr. Whatever is heavy (torch,
transformers) is imported inside the command that needs it, so that help and usage errors come at once.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from hf_arch import __version__
from hf_arch.cli import completion
from hf_arch.cli.arguments import (
    AsJson,
    Distributed,
    DryRun,
    Engine,
    Match,
    Overrides,
    Recipe,
    RunName,
    Scale,
    Slurm,
)
from hf_arch.cli.bench import register as register_bench
from hf_arch.cli.data import register as register_data
from hf_arch.cli.errors import OneLineErrors
from hf_arch.cli.evaluation import register as register_evaluation
from hf_arch.cli.generate import register as register_generate
from hf_arch.cli.hub import register as register_hub
from hf_arch.cli.new import register as register_new
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.cli.panels import LOOK, TRAIN
from hf_arch.cli.plugins import PluginCode, load_override_plugins
from hf_arch.cli.probe import register as register_probe
from hf_arch.cli.results import register as register_results
from hf_arch.cli.watch import register as register_watch
from hf_arch.cli.with_command import register as register_with
from hf_arch.core.collector import without_collection
from hf_arch.core.errors import ConfigError
from hf_arch.core.quiet import prepare_process
from hf_arch.core.waiting import LOADING, announced, importing

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Invent, ablate and compare language-model architectures.\n\n"
    "Try `hf-arch run quickstart --dry-run`, `hf-arch info llama`, `hf-arch check gla`.",
)
register_data(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hf_arch {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    return


@app.command("list", rich_help_panel=LOOK)
def list_command(
    components: Annotated[bool, typer.Option("--components", help="Every part that a config can name.")] = False,
    recipes: Annotated[bool, typer.Option("--recipes", help="The recipes that come with the package.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="Every key of a recipe but those of the model.")] = False,
    corpora: Annotated[bool, typer.Option("--corpora", help="Texts to train on.")] = False,
    probes: Annotated[bool, typer.Option("--probes", help="Synthetic tasks.")] = False,
    tasks: Annotated[bool, typer.Option("--tasks", help="Tasks of `eval` whose rows are on this machine.")] = False,
    as_json: AsJson = False,
) -> int:
    """List the architectures, or the parts, recipes, recipe keys, corpora, probes or tasks.

    - `hf-arch list`
    - `hf-arch list --recipes`
    - `hf-arch list --components --json`
    """
    given = {
        "--components": components,
        "--recipes": recipes,
        "--keys": keys,
        "--corpora": corpora,
        "--probes": probes,
        "--tasks": tasks,
    }
    asked = [name for name, wanted in given.items() if wanted]
    if len(asked) > 1:
        raise ConfigError(f"{asked[1]}: not together with {asked[0]}; ask for one list at a time")
    with only_results_on_stdout(), without_collection():
        from hf_arch.cli.names import architecture_rows, print_rows, recipe_rows

        if not asked:
            rows: Any = architecture_rows()
        elif recipes:
            rows = recipe_rows()
        else:
            from hf_arch.cli.listing import LISTS

            rows = LISTS[asked[0]]()
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
    return 0


@app.command(rich_help_panel=LOOK)
def info(
    target: Annotated[
        str,
        typer.Argument(
            metavar="ARCH|RECIPE|PATH", help="A name, a YAML file, or a saved model.", autocompletion=completion.targets
        ),
    ],
    overrides: Overrides = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Context length of the costs, in tokens; default: a recipe's rows, else the model's longest context.",
        ),
    ] = None,
    options: Annotated[
        bool, typer.Option("--options", help="List every key of the config with its default instead.")
    ] = False,
    plugin_code: PluginCode = "run",
    as_json: AsJson = False,
) -> int:
    """Show what a model is made of and what it costs, without building it.

    - `hf-arch info llama num_hidden_layers=12`
    - `hf-arch info quickstart --json`
    - `hf-arch info gla --options`
    - `hf-arch info results/quickstart/llama_1a2b3c4d5e`
    """
    with only_results_on_stdout(), without_collection():
        if options:
            from hf_arch.cli.listing import option_rows
            from hf_arch.cli.names import print_rows

            load_override_plugins(overrides or [])
            rows = option_rows(target)
        else:
            from hf_arch.cli.kept_reports import reports_on

            load_override_plugins(overrides or [])
            reports = reports_on(target, overrides or [], seq_len)
    if options:
        if as_json:
            print_json(rows)
        else:
            print_rows(rows)
        return 0
    if as_json:
        print_json(reports[0] if len(reports) == 1 else reports)
        return 0
    from rich.console import Console

    from hf_arch.runs.model_report import render_model_report

    for report in reports:
        Console().print(render_model_report(report))
    return 0


@app.command(rich_help_panel=LOOK)
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py|ARCH",
            help="A file that registers parts, or the name of an architecture.",
            autocompletion=completion.checkable,
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
    coordinates: Annotated[
        bool,
        typer.Option(
            "--coordinates", help="Instead check that training moves activations equally at every width (muP)."
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="`cpu`, `cuda`, ...; on a GPU with the kernels that run there.")] = "cpu",
) -> int:
    """Test a part or an architecture: causality, caches, padding, packing, gradients, parameters, state, FLOPs.

    Takes any file that registers mixers, feed-forwards, norms, positions, streams, sites, embeddings, depths, losses,
    architectures or probes. `--coordinates` takes an architecture, with parametrization=mup unless another is given.
    Seconds, on models of a few thousand parameters; exit code 1 where an invariant fails.

    - `hf-arch check my_mixer.py num_attention_heads=2`
    - `hf-arch check gla use_short_conv=true --json`
    - `hf-arch check llama --coordinates parametrization=completep`
    """
    from transformers.utils.logging import disable_progress_bar

    from hf_arch.cli.check import check_target, print_checks

    disable_progress_bar()
    with only_results_on_stdout():
        load_override_plugins(overrides or [])
        checked = check_target(target, overrides or [], coordinates, device)
    if as_json:
        print_json({name: [dataclasses.asdict(result) for result in results] for name, results in checked.items()})
    else:
        for name, results in checked.items():
            print_checks(name, results)
    return 0 if all(result.passed for results in checked.values() for result in results) else 1


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    output_dir: Annotated[str | None, typer.Option(help="Run folder; by default `results/<name>_<hash>`.")] = None,
    run: RunName = None,
    scale: Scale = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, with the recipe it was started with.")
    ] = False,
    extend_to: Annotated[
        int | None,
        typer.Option(metavar="STEPS", min=1, help="Continue a run, finished or not, up to this many steps in total."),
    ] = None,
    distributed: Distributed = "auto",
    plugin_code: PluginCode = "run",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Train one model and write its run folder: results, metrics, checkpoints, and the model with its tokenizer.

    - `hf-arch train recipe.yaml training.max_steps=100 --output-dir runs/first`
    - `hf-arch train recipes/quickstart/quickstart.yaml --run gla`
    - `hf-arch train pretrain/llama-124m --dry-run`
    """
    from hf_arch.core.heap import keep_memory
    from hf_arch.core.threads import prepare_threads

    prepare_threads()
    keep_memory()
    from hf_arch.cli.train import TrainOptions, preview_train, train_recipe

    options = TrainOptions(recipe, tuple(overrides or ()), scale, run, output_dir, resume, extend_to, distributed)
    return preview_train(options, as_json) if dry_run else train_recipe(options, as_json)


@app.command("run", rich_help_panel=TRAIN)
def run_command(
    recipe: Recipe,
    overrides: Overrides = None,
    scale: Scale = None,
    results_dir: Annotated[str | None, typer.Option(help="Folder of the set; by default `results/<name>`.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time; with Slurm, 1 means as many as it starts.")] = 1,
    engine: Engine = "local",
    slurm: Slurm = None,
    distributed: Annotated[
        str,
        typer.Option(
            **completion.choices("auto|always|never"),
            help="`always` trains each run in several processes, one for each GPU; otherwise a run is one process.",
        ),
    ] = "auto",
    controls: Annotated[
        bool, typer.Option("--controls", help="Add control runs that remove the confounds of the hypothesis's claims.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, instead of the recipe's.")] = None,
    match: Match = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="Learning rate of every run; repeat the option to try several.")
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Train every run of a set, each in its own process, then compare them and write `report.html`.

    Finished runs are kept, interrupted ones resume, failed ones are retried once and do not affect the others. Started
    a second time, here or on another machine with the same results folder, it shares the runs between the two.

    - `hf-arch run recipes/experiments/heads.yaml --scale cpu`
    - `hf-arch run quickstart --seeds 3 --learning-rate 1e-3 --learning-rate 3e-3 --dry-run`
    """
    with only_results_on_stdout():
        from hf_arch.cli.run import Changes, run_recipe
        from hf_arch.experiments.execution.runner import RunOptions

    options = RunOptions(workers, engine, distributed, tuple(slurm or ()))
    return run_recipe(
        recipe,
        results_dir,
        options,
        scale=scale,
        overrides=overrides or (),
        changes=Changes(seeds, match, tuple(learning_rate or ())),
        dry_run=dry_run,
        controls=controls,
        as_json=as_json,
    )


@app.command(rich_help_panel=LOOK)
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="Which GPU, e.g. `H100`.")] = "H100",
    count: Annotated[int, typer.Option(help="Number of GPUs in all.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines that the GPUs are spread over.")] = 1,
    run: RunName = None,
    scale: Scale = None,
    mfu: Annotated[float, typer.Option(help="Assumed model FLOPs utilisation, from 0 to 1.")] = 0.4,
    price: Annotated[float | None, typer.Option(help="Price of one GPU-hour in any currency, for the cost.")] = None,
    as_json: AsJson = False,
) -> int:
    """Forecast training on GPUs that this machine need not have: memory by part and strategy, time and cost.

    Strategies: DDP, ZeRO-1, FSDP2, tensor parallelism. Where one does not fit, the nearest setting that does is named.

    - `hf-arch plan pretrain/llama-124m --gpu H100 --count 64 --nodes 8`
    """
    with only_results_on_stdout():
        with without_collection():
            from hf_arch.cli.plan import plan_capacity, print_plans, to_json
        cluster, plans = plan_capacity(recipe, overrides or [], scale, run, (gpu, count, nodes), mfu, price)
    if as_json:
        print_json(to_json(cluster, plans))
    else:
        print_plans(cluster, plans)
    return 0


register_results(app)
register_generate(app)
register_evaluation(app)
register_bench(app)
register_hub(app)
register_probe(app)
register_new(app)
register_watch(app)
register_with(app)


def main() -> None:
    """Entry point of the console script."""
    prepare_process()
    with announced(LOADING, when=importing):
        app()
