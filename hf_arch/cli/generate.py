"""The command `generate`; `register(app)` adds it to the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from hf_arch.cli import completion
from hf_arch.cli.arguments import AsJson, Device, SavedDtype
from hf_arch.cli.output import only_results_on_stdout, print_json, print_status
from hf_arch.cli.panels import RESULTS
from hf_arch.cli.plugins import PluginCode

ModelPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A run, a saved model, or a Hub id.", autocompletion=completion.runs)
]
Prompt = Annotated[str | None, typer.Option(help="Text to continue.")]
PromptFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="File with one prompt per line, instead of `--prompt`.")
]
NewTokens = Annotated[int, typer.Option(help="Tokens to generate.")]
Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token, 1 samples from the model's own distribution.")
]
TopK = Annotated[int, typer.Option(help="Sample from the K likeliest tokens; 0: from all.")]
TopP = Annotated[
    float, typer.Option(help="Sample from the likeliest tokens whose probabilities add up to this; 1: from all.")
]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one's probability; 0: none.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Above 1: penalise tokens that have already occurred.")]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Stop before this text; may be repeated.")]
Seed = Annotated[int, typer.Option(help="The same seed writes the same text.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts of `--prompt-file` generated together.")]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("generate", rich_help_panel=RESULTS)(generate_command)


def generate_command(
    path: ModelPath,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
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
    print_status(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s")
    return 0


def _write(text: str) -> None:
    print(text, end="", flush=True)
