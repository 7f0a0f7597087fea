"""`hf-arch eval`: batches change no score, runs keep their scores, a folder of runs is one evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")

from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.core.files import read_json
from hf_arch.evaluation.harness import load_tasks
from hf_arch.evaluation.lm_eval import ArchLM
from hf_arch.evaluation.model_scores import EvalOptions, evaluate_path
from hf_arch.evaluation.text_loss import TextOptions
from tests.evaluation.tiny import byte_tokenizer, saved_model, tiny_model

TASKS = ("sentence_completion", "simple_qa", "arithmetic_2da")
ARCHITECTURES = ("gpt2", "gla", "mamba", "hybrid")


def responses(lm: ArchLM, method: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    requests = [Instance(method, {}, argument, index) for index, argument in enumerate(arguments)]
    return getattr(lm, method)(requests)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batches_of_unequal_length_change_nothing(name: str) -> None:
    """Log-likelihoods (padded on the right) and greedy text (padded on the left), one by one and eight at once."""
    model, tokenizer = tiny_model(name), byte_tokenizer()
    texts = ["the king", "a", "dust where no man dares", "his crown lies in", "x y", "France is", "again", "to lift it"]
    found = {}
    for batch_size in (1, 8):
        lm = ArchLM(model, tokenizer=tokenizer, batch_size=batch_size)
        likelihoods = responses(lm, "loglikelihood", [(text, " is dead") for text in texts])
        written = responses(lm, "generate_until", [(text, {"until": ["\n"], "max_gen_toks": 6}) for text in texts])
        found[batch_size] = (torch.tensor([value for value, _ in likelihoods]), written)
    torch.testing.assert_close(found[1][0], found[8][0], rtol=0, atol=1e-3)
    assert found[1][1] == found[8][1]


def test_a_likelihood_is_the_models(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gla"), byte_tokenizer()
    ids = torch.tensor([tokenizer("the king is")["input_ids"]])
    expected = model(ids).logits.log_softmax(-1)[0, 7:-1].gather(1, ids[0, 8:, None]).sum().item()
    lm = ArchLM(str(saved_model(tmp_path, "gla")), device="cpu")
    ((value, _),) = responses(lm, "loglikelihood", [("the king", " is")])
    assert value == pytest.approx(expected, abs=1e-4)


def test_an_answer_longer_than_the_context_is_one_line() -> None:
    lm = ArchLM(tiny_model("gpt2", max_position_embeddings=8), tokenizer=byte_tokenizer())
    with pytest.raises(ConfigError, match="max_position_embeddings: 8 is too short"):
        responses(lm, "loglikelihood", [("a", " an answer that does not fit")])


def test_prompts_that_are_cut_are_counted_and_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lm = ArchLM(tiny_model("gla", max_position_embeddings=16), tokenizer=byte_tokenizer())
    texts = ("0123456789", "0123456789a")
    responses(lm, "generate_until", [(text, {"until": [], "max_gen_toks": 6}) for text in texts])
    assert [lm.is_cut((text, {})) for text in texts] == [False, True]
    responses(lm, "loglikelihood", [(text, " answer") for text in texts])  # the last token is asked for, never shown
    assert [lm.is_cut((text, " answer")) for text in texts] == [False, True]

    short, enough = (str(saved_model(tmp_path / str(n), "gla", max_position_embeddings=n)) for n in (24, 2000))
    options = EvalOptions(("sentence_completion",), limit=6)
    cut = evaluate_path(short, options)["results"]["sentence_completion"]["truncated"]
    assert 0 < cut <= 6
    assert f"sentence_completion: {cut} of 6 prompts are longer than the 24 tokens" in capfd.readouterr().err
    assert "truncated" not in evaluate_path(enough, options)["results"]["sentence_completion"]
    assert "prompts are longer" not in capfd.readouterr().err


def test_scores_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    path = str(saved_model(tmp_path, "mamba"))
    results = [evaluate_path(path, EvalOptions(TASKS, batch_size=size, limit=12))["results"] for size in (1, 8)]
    assert results[0] == results[1]
    assert set(results[0]) == set(TASKS)
    assert results[0]["simple_qa"]["samples"] == 12
    assert 0 <= results[0]["simple_qa"]["acc"] <= 1


def test_examples_change_the_prompt_and_are_told(tmp_path: Path) -> None:
    path = str(saved_model(tmp_path, "gla"))
    tasks = ("sentence_completion",)
    results = [
        evaluate_path(path, EvalOptions(tasks, batch_size=size, limit=16, num_fewshot=3))["results"] for size in (1, 8)
    ]
    assert results[0] == results[1]
    assert results[0]["sentence_completion"]["num_fewshot"] == 3


def test_the_command_writes_json_and_nothing_else(tmp_path: Path) -> None:
    path = saved_model(tmp_path / "model", "gla")
    text = tmp_path / "text.txt"
    text.write_text("the king of france is dead. " * 30)
    arguments = ["eval", str(path), "--tasks", "simple_qa,perplexity", "--limit", "4", "--text", str(text), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--stride", "64", "--output-json", str(tmp_path / "out.json")])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out.json").read_text())
    perplexity = document["results"]["perplexity"]
    assert perplexity["tokens"] == len(text.read_bytes())
    assert perplexity["stride"] == 64
    assert perplexity["bits_per_byte"] == pytest.approx(perplexity["loss"] / 0.6931471805599453)
    assert document["architecture"] == "gla"
    assert document["provenance"]["lm_eval"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tasks", "simple_qua"], "nearest: 'simple_qa'"),
        (["--tasks", ","], "--tasks: no task given"),
        (["--tasks", "simple_qa", "--dtype", "bf61"], "nearest: 'bf16'"),
        (["--tasks", "simple_qa", "--device", "cpuu"], "nearest: 'cpu'"),
        (["--tasks", "simple_qa", "--limit", "0"], "--limit: 0"),
        (["--tasks", "simple_qa", "--num-fewshot", "-1"], "--num-fewshot: -1"),
        (["--tasks", "perplexity", "--num-fewshot", "2"], "--num-fewshot: `perplexity` takes no examples"),
        (["--tasks", "simple_qa", "--rows", "locl"], "nearest: 'local'"),
        (["--tasks", "simple_qa", "--include-path", "nowhere"], "--include-path: nowhere: no such folder"),
        (["--tasks", "perplexity", "--text", "nowhere.txt"], "--text: nowhere.txt"),
        (["--tasks", "perplexity", "--text", "{text}", "--stride", "9999"], "stride: 9999"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    path = saved_model(tmp_path / "model", "gpt2")
    (tmp_path / "text.txt").write_text("the king is dead")
    filled = [argument.format(text=tmp_path / "text.txt") for argument in arguments]
    local = [] if "--rows" in filled or "perplexity" in filled else ["--rows", "local"]
    with pytest.raises(SystemExit) as stopped:
        _main(["eval", str(path), *filled, *local])
    assert stopped.value.code == 2
    assert expected in stopped.value.__notes__[0]


def _main(arguments: list[str]) -> None:
    """Runs the command line in this process; the exit carries what it said on stderr."""
    import io
    from contextlib import redirect_stderr

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            app(arguments)
    except SystemExit as stopped:
        stopped.add_note(said.getvalue())
        raise


def test_a_run_is_scored_on_its_own_text_and_keeps_its_scores(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "suite" / finished.name
    shutil.copytree(finished, run)
    first = evaluate_path(str(run), EvalOptions(("perplexity",), text=TextOptions(stride=None)))
    evaluate_path(str(run), EvalOptions(("simple_qa",), limit=4))
    kept = read_json(run / "evaluation.json")["results"]
    assert set(kept) == {"perplexity", "simple_qa"}
    assert kept["simple_qa"]["settings"]["limit"] == 4
    assert kept["perplexity"]["loss"] == first["results"]["perplexity"]["loss"]
    # The run scored rows apart, this scores them in a line: the first token of each row counts too.
    assert kept["perplexity"]["loss"] == pytest.approx(read_json(run / "results.json")["final_val_loss"], rel=0.1)


def test_a_folder_of_runs_is_evaluated_at_once(finished: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite"
    for name in ("a_12345678", "b_12345678"):
        shutil.copytree(finished, suite / name)
    unfinished = suite / "c_12345678"
    shutil.copytree(finished, unfinished)
    (unfinished / "results.json").write_text(json.dumps({"status": "failed", "name": "c"}))
    document = evaluate_path(str(suite), EvalOptions(("word_association",), limit=4))
    assert len(document["runs"]) == 2
    rows = {Path(row["path"]).name: row for row in read_json(suite / "all_benchmark_results.json")["results"]}
    assert rows["a_12345678"]["benchmarks"]["word_association"]["samples"] == 4
    assert rows["b_12345678"]["benchmarks"]["word_association"]["acc"] >= 0
    assert rows["c_12345678"]["benchmarks"] == {}


def test_a_suite_stands_for_its_tasks() -> None:
    from hf_arch.evaluation.offline import INSTALL, wheel_folder

    if wheel_folder() is None:
        pytest.skip(f"needs rows: {INSTALL}")
    names = set(load_tasks(["comprehensive"], rows="local", limit=2)["tasks"])
    assert {"lambada_openai", "arithmetic_1dc", "sentence_completion", "piqa", "social_iqa"} <= names
