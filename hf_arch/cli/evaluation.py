"""The commands `generate`, `eval` and `bench`; `register(app)` adds them to the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson, Device, SavedDtype
from hf_arch.cli.output import only_results_on_stdout, print_json
from hf_arch.cli.panels import RESULTS
from hf_arch.cli.plugins import PluginCode, load_override_plugins
from hf_arch.core.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Adds the commands of this package to `app`."""
    app.command("generate", rich_help_panel=RESULTS)(generate_command)
    app.command("eval", rich_help_panel=RESULTS)(eval_command)
    app.command("bench", rich_help_panel=RESULTS)(bench_command)


def generate_command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A run, a saved model, or a Hub id.", autocompletion=completion.runs)
    ],
    prompt: Annotated[str | None, typer.Option(help="Text to continue.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with one prompt per line, instead of `--prompt`.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token, 1 samples from the model's own distribution.")
    ] = 0.8,
    top_k: Annotated[int, typer.Option(help="Sample from the K likeliest tokens; 0: from all.")] = 50,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens whose probabilities add up to this; 1: from all.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this share of the likeliest one's probability; 0: none.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: penalise tokens that have already occurred.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Stop before this text; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts of `--prompt-file` generated together.")] = 8,
    dtype: SavedDtype = "auto",
    device: Device = None,
    plugin_code: PluginCode = "run",
    as_json: AsJson = False,
) -> int:
    """Continue a prompt with a trained model, printed as it is written; the speed goes to stderr.

    - `hf-arch generate results/quickstart/gla_1a2b3c4d5e --prompt "ROMEO: " --stop "JULIET:"`
    - `hf-arch generate results/quickstart/gla_1a2b3c4d5e --prompt-file prompts.txt --temperature 0 --json`
    """
    with only_results_on_stdout():
        from hf_arch.core.quiet import quiet_libraries
        from hf_arch.evaluation.generation import SamplingOptions, generate_batch, generate_text, read_prompts
        from hf_arch.evaluation.loading import load_model, parse_device, parse_dtype

    options = SamplingOptions(
        max_new_tokens, temperature, top_k, top_p, seed, min_p, repetition_penalty, tuple(stop or ())
    )
    prompts = read_prompts(prompt, prompt_file)
    with quiet_libraries():
        model, tokenizer = load_model(path, dtype=parse_dtype(dtype), device=parse_device(device))
        if prompt is not None and not as_json:
            _write(prompt)
            done = [generate_text(model, tokenizer, prompt, options, write=_write)]
            print()
        else:
            done = []
            for written in generate_batch(model, tokenizer, prompts, options, batch_size):
                if not as_json:
                    print(f"{prompts[len(done)]}{written.text}\n")
                done.append(written)
    if as_json:
        pairs = zip(prompts, done, strict=True)
        print_json([{"prompt": text, "text": one.text, "tokens": one.tokens} for text, one in pairs])
    tokens, seconds = sum(one.tokens for one in done), sum(one.seconds for one in done)
    _print_status(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s")
    return 0


def _write(text: str) -> None:
    print(text, end="", flush=True)


def eval_command(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A run, a saved model, a Hub id, or a folder of finished runs.",
            autocompletion=completion.runs,
        ),
    ],
    tasks: Annotated[str, typer.Option(help="Tasks of lm_eval, `comprehensive` or `perplexity`, separated by commas.")],
    batch_size: Annotated[int, typer.Option(help="Rows at a time; scores do not depend on it.")] = 8,
    dtype: SavedDtype = "auto",
    device: Device = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N rows of each task.")] = None,
    output_json: Annotated[
        str | None,
        typer.Option("--output-json", "--output", metavar="FILE", help="Write the scores to this file as JSON."),
    ] = None,
    include_path: Annotated[str | None, typer.Option(metavar="DIR", help="A folder of your own task files.")] = None,
    rows: Annotated[
        str,
        typer.Option(
            **completion.choices("auto|hub|local"),
            help="Where rows come from; `auto`: this machine where it has them, else the Hub.",
        ),
    ] = "auto",
    num_fewshot: Annotated[
        int | None, typer.Option(help="Solved examples before each row; default: the task's own number.")
    ] = None,
    average_last: Annotated[
        int | None,
        typer.Option(help="Average the scores of a run's last N checkpoints instead of scoring its final weights."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Text that `perplexity` scores; default: the run's held-out text."),
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens between the windows of `perplexity`; default: a whole window.")
    ] = None,
    plugin_code: PluginCode = "run",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be scored, with hours on this device, memory and disk."),
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Score a model on benchmarks, or every finished run in a folder.

    - `hf-arch eval results/quickstart/gla_1a2b3c4d5e --tasks perplexity,sentence_completion`
    - `hf-arch eval results/quickstart --tasks comprehensive,hellaswag --limit 200 --output-json scores.json`
    - `hf-arch eval results/quickstart --tasks hellaswag --dry-run`
    """
    with only_results_on_stdout():
        from hf_arch.core.files import to_jsonable, write_json
        from hf_arch.core.quiet import quiet_libraries
        from hf_arch.evaluation.forecast import forecast_eval
        from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path, print_scores, split_names
        from hf_arch.evaluation.text_loss import TextOptions
        from hf_arch.report.eval_preview import print_eval_preview

        options = EvalOptions(
            tasks=split_names(tasks),
            batch_size=batch_size,
            dtype=dtype,
            device=device,
            limit=limit,
            include_path=include_path,
            rows=rows,
            num_fewshot=num_fewshot,
            average_last=average_last,
            text=TextOptions(file=text, stride=stride, limit=limit, batch_size=batch_size),
        )
        with quiet_libraries():
            document = forecast_eval(path, options) if dry_run else evaluate_path(path, options)
    if dry_run and not as_json:
        print_eval_preview(document)
        return 0
    if output_json is not None and not dry_run:
        write_json(output_json, document)
    if as_json:
        print_json(to_jsonable(document))
    else:
        print_scores(document)
    return 0


def bench_command(
    architectures: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ARCH]...",
            help="Names, recipes, runs or saved models; `key=value` changes configs.",
            autocompletion=completion.targets,
        ),
    ] = None,
    seq_len: Annotated[str, typer.Option(help="Context lengths in tokens, separated by commas.")] = "256",
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    dtype: Annotated[str, typer.Option(help="`fp32`, `bf16` or `fp16`.")] = "fp32",
    device: Device = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="transformers", help="Also measure transformers' model of the same sizes and weights."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are reported.")] = 5,
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Also measure the machine's limits, and each row's share of them.")
    ] = False,
    output_json: Annotated[
        str | None,
        typer.Option("--output-json", "--output", metavar="FILE", help="Write all numbers to this file as JSON."),
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw speed and memory into this png, svg or pdf.")
    ] = None,
    plugin_code: PluginCode = "run",
    as_json: AsJson = False,
) -> int:
    """Measure training, prefill and decode speed, peak memory and cache, side by side in one run.

    - `hf-arch bench llama gla mamba --seq-len 256,1024`
    - `hf-arch bench gpt2 llama hidden_size=256 num_attention_heads=8 --against transformers --json`
    """
    with only_results_on_stdout():
        from hf_arch.core.threads import prepare_threads

        prepare_threads()
        from hf_arch.core.files import to_jsonable, write_json
        from hf_arch.core.quiet import quiet_libraries
        from hf_arch.evaluation.bench import BenchOptions, run_bench
        from hf_arch.evaluation.model_scores import split_names
        from hf_arch.experiments.planning.bench_models import find_candidates
        from hf_arch.report.bench_report import check_plot_path, plot_bench, print_bench

        lengths = tuple(_length(text) for text in split_names(seq_len))
        options = BenchOptions(lengths, batch_size, dtype, device, repeats, roofline=roofline)
        if plot is not None:
            check_plot_path(plot)
        with quiet_libraries():
            load_override_plugins(text for text in architectures or [] if "=" in text)
            found = find_candidates(architectures or [], tokens=options.longest, against=against, report=_print_status)
            document = run_bench(found, options, _print_status)
        if output_json is not None:
            write_json(output_json, document)
        if plot is not None:
            plot_bench(document, plot)
    if as_json:
        print_json(to_jsonable(document))
    else:
        print_bench(document)
    return 0


def _length(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--seq-len: {text!r} is not a whole number; e.g. --seq-len 256,1024") from None


def _print_status(line: str) -> None:
    print(line, file=sys.stderr)
