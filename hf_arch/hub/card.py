"""The model card: what a model is made of, what it cost, and what was measured; nothing that was not.

    write_card(folder, model_folder, repo_id="alice/gla-small")

The numbers come from the run folder that the model lies in (`results.json`, `metrics.jsonl`, `evaluation.json` of
`hf-arch eval`, and the comparison where the run belongs to a set). A model without a run gets a card that says so.
Evaluations also go into the metadata as a `model-index`, from which the Hub draws its own table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

import hf_arch
from hf_arch.checkpoints.checkpoint import require_ours
from hf_arch.core.formats import byte_size, quantity
from hf_arch.core.registry import ARCHITECTURES
from hf_arch.hub.run_facts import (
    Benchmark,
    comparison_of,
    draw_curve,
    machine,
    measured_rows,
    numbers_at,
    one_line,
    read_benchmarks,
    recipe_text,
    sample_of,
    table_cell,
    without_paths,
)
from hf_arch.models.configuration import ArchConfig
from hf_arch.runs.record import RunRecord

CARD_FILE = "README.md"
CURVE_FILE = "loss_curve.png"


def write_card(
    folder: Path,
    source: Path,
    run: RunRecord | None = None,
    *,
    repo_id: str,
    step: int | None = None,
    revision: str | None = None,
    code: bool = True,
    license: str | None = None,
) -> None:
    """Write README.md, and the loss curve that it shows, into `folder`.

    Args:
        source: the model's folder. run: where its numbers are. repo_id: what it will be called.
        step, revision: of an intermediate checkpoint, which gets the numbers of its own step only.
        code: whether the repository brings the model's code. license: of the weights; None = none stated.
    """
    config = require_ours(source)
    curve_alt = None if run is None or step is not None else draw_curve(run, folder / CURVE_FILE)
    numbers = {} if run is None else run.numbers if step is None else numbers_at(run, step)
    benchmarks = [] if run is None or step is not None else read_benchmarks(run)
    data = _metadata(config, run, numbers, benchmarks, repo_id, license)
    text = _template().render(
        title=repo_id.rsplit("/", 1)[-1],
        **_description(config),
        step=step,
        revision=revision,
        sentence=_sentence(numbers),
        curve=CURVE_FILE if curve_alt else None,
        curve_alt=curve_alt,
        hypothesis=one_line(run.hypothesis) if run else "",
        attribution=one_line(run.attribution or "") if run else "",
        recipe=recipe_text(run.config) if run else None,
        measured=measured_rows(run, numbers),
        machine=machine(run) if run and numbers else None,
        benchmarks=benchmarks,
        comparison=comparison_of(run) if run and step is None else None,
        sample=sample_of(run) if run and step is None else None,
        code=code,
        repo_id=repo_id,
        license=license,
    )
    text = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / CARD_FILE)


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hf_arch.hub"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("card.md")


def _metadata(
    config: ArchConfig,
    run: RunRecord | None,
    numbers: dict[str, float],
    benchmarks: Iterable[Benchmark],
    repo_id: str,
    license: str | None,
) -> ModelCardData:
    corpus = without_paths(run.config.get("data", {}).get("corpus", "")) if run else ""
    own = {"type": _identifier(corpus) or "text", "name": f"{corpus or 'text'} (validation)", "split": "validation"}
    measures = (("final_val_loss", "loss"), ("final_val_perplexity", "perplexity"), ("bits_per_byte", "bits_per_byte"))
    results = [
        _result(own, metric, round(numbers[key], 6)) for key, metric in measures if key in numbers
    ]  # fmt: skip
    results += [
        _result(
            {"type": row.task, "name": f"{row.task} ({row.count})" if row.count else row.task, "split": None},
            row.metric,
            round(row.value, 6),
        )
        for row in benchmarks
    ]
    return ModelCardData(
        model_name=repo_id.rsplit("/", 1)[-1],
        eval_results=results or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=license,
        tags=["hf_arch", config.model_type],
    )


def _result(dataset: dict[str, Any], metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        task_name="Text Generation",
        dataset_type=dataset["type"],
        dataset_name=dataset["name"],
        dataset_split=dataset["split"],
        metric_type=metric,
        metric_name=metric.replace("_", " "),
        metric_value=value,
    )


def _description(config: ArchConfig) -> dict[str, Any]:
    """What follows from the config alone."""
    name, components = hf_arch.describe(config)
    length = config.max_position_embeddings
    cost = hf_arch.cost(config, length)
    entry = ARCHITECTURES.get(config.model_type.removeprefix("hfa_"))
    active = [("active for a token", f"{cost.params_active:,}")] if cost.params_active != cost.params_total else []
    rows = [
        ("parameters", f"{cost.params_total:,}"),
        ("without embeddings", f"{cost.params_total - cost.params_embedding:,}"),
        *active,
        ("training FLOPs a token", f"{quantity(cost.flops_per_token_train)} (sequences of {length})"),
        ("forward FLOPs a token", quantity(cost.flops_per_token_forward)),
        ("cache or state", f"{byte_size(cost.state_bytes(length))} a sequence (context {length}, fp32 states)"),
    ]
    return {
        "architecture_name": name,
        "summary": f"A causal language model of the architecture `{entry.name}`: {entry.summary} ({entry.paper}).",
        "parameters": quantity(cost.params_total),
        "components": [(key, table_cell(value)) for key, value in components],
        "cost": rows,
    }


def _sentence(numbers: dict[str, float]) -> str:
    loss = numbers.get("final_val_loss")
    if loss is None:
        return ""
    bits = f", {numbers['bits_per_byte']:.3f} bits a byte" if "bits_per_byte" in numbers else ""
    tokens = f" after {quantity(numbers['tokens_seen'])} tokens" if "tokens_seen" in numbers else ""
    return f"Validation loss {loss:.3f} nats a token{bits}{tokens}."


def _identifier(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", str(name)).strip("-")
