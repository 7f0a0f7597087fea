"""Examples in help parse as written and name recipes that exist; commands stand in groups; completion answers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import typer

from hf_arch.cli import app
from hf_arch.core.errors import ConfigError
from hf_arch.core.recipes import find_recipe
from hf_arch.evaluation.model_scores import require_harness

GROUP = typer.main.get_command(app)
COMMANDS = dict(GROUP.commands.items())
DATA = {f"data {name}": command for name, command in COMMANDS["data"].commands.items()}
EXAMPLES = [
    (name, example)
    for name, command in {"": GROUP, **COMMANDS, **DATA}.items()
    for example in re.findall(r"`(hf-arch [^`]+)`", " ".join((command.help or "").split()))
]


def test_every_command_has_an_example():
    assert {name for name, _ in EXAMPLES} >= {*COMMANDS, *DATA} - {"data"}


def test_each_example_has_a_line_of_its_own_to_copy():
    for name, command in {**COMMANDS, **DATA}.items():
        lines = [line.strip() for line in (command.help or "").splitlines() if "`hf-arch " in line]
        assert all(re.fullmatch(r"- `hf-arch [^`]+`", line) for line in lines), name


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_an_example_parses_as_written(name, example):
    words = shlex.split(example)[1:]
    assert not name or words[: len(name.split())] == name.split()
    command = GROUP
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("hf-arch", words)  # raises where an option or argument is wrong
    recipe = context.params.get("recipe")
    if recipe is not None and recipe != "recipe.yaml":
        assert find_recipe(recipe).is_file()


def test_every_command_stands_in_a_group():
    infos = [*app.registered_commands, *app.registered_groups]
    assert all(isinstance(info.rich_help_panel, str) for info in infos)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hf-arch info gated_delta_n", "gated_delta_net"),
        ("hf-arch run quickst", "quickstart"),
        ("hf-arch run quickstart --match ", "parameters"),
        ("hf-arch report results --format cs", "csv"),
        ("hf-arch new optim", "optimizer"),
        ("hf-arch run tutorial/fi", "tutorial/first_comparison"),
        ("hf-arch comp", "compare"),
        ("hf-arch check gla", "gla"),
    ],
)
def test_completion_answers_without_importing_torch(words, expected, tmp_path):
    env = os.environ | {
        "_HF_ARCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = (
        "import sys; sys.argv[0] = 'hf-arch'\n"
        "from hf_arch.cli import app\n"
        "try: app(prog_name='hf-arch')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr.strip() == "False"
    assert expected in done.stdout.split()


@pytest.mark.parametrize("flag", ["--recipes", "--keys", "--corpora", "--probes", "--tasks", "--components"])
def test_lists(flag, capsys):
    with pytest.raises(SystemExit) as end:
        app(["list", flag, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and len(rows) > 4 and all(row["name"] for row in rows)


def test_one_list_at_a_time(capsys):
    with pytest.raises(SystemExit) as end:
        app(["list", "--recipes", "--tasks"])
    assert end.value.code == 2 and "one list at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run quickstart --seeds 0", "--seeds: '0' is not allowed; expected at least 1; nearest: 1"),
        ("run quickstart --seeds two", "--seeds: 'two' is not allowed; expected a whole number"),
        ("run quickstart --learning-rate fast", "--learning-rate: 'fast' is not allowed; expected a number"),
        ("plan quickstart --count many", "--count: 'many' is not allowed; expected a whole number"),
        ("watch results --port 99999", "--port: '99999' is not allowed; expected at most 65535; nearest: 65535"),
    ],
)
def test_a_wrong_value_of_an_option_is_one_line_with_the_value(words, line, capsys):
    with pytest.raises(SystemExit) as end:
        app(words.split())
    assert end.value.code == 2 and capsys.readouterr().err == f"error: {line}\n"


def test_a_misspelt_task_and_tokenizer_name_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'perplexitty' needs lm-evaluation-harness.* nearest .*: 'perplexity'"):
        require_harness(["perplexitty"])
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        app(["data", "prepare", "python-docs", "--tokenizer", "bpee", "--dry-run"])
    assert "'bpee' is not on this machine (nearest of those that need no download: 'bpe')" in capsys.readouterr().out
