"""Whether a task's rows can be scored at all.

Where a definition names a column that the rows lack, lm_eval takes the name itself for the prompt or the answer,
without an error, and every model scores zero or chance. So before anything is scored, rows have to have differing
prompts, choices, and a gold answer among them.
"""

from __future__ import annotations

from typing import Any

from hf_arch.core.errors import ConfigError

MOST_ROWS = 500
"""More rows than this are not looked at, but so many spread over all: wrong columns are wrong everywhere."""


def check_rows(task: Any, limit: int | None = None) -> int:
    """Looks at the rows of a task of lm_eval that will be scored (the first `limit`), and returns their number.

    Raises:
        ConfigError: naming the task, the row, and what is wrong with it.
    """
    name, rows = task.config.task, task.task_docs
    count = min(len(rows), limit or len(rows))
    if not count:
        raise ConfigError(f"{name}: there are no rows to score")
    seen = set()
    for number in range(0, count, -(-count // MOST_ROWS)):
        prompt, choices, gold = _rendered(task, rows[number])
        problem = _problem(task.OUTPUT_TYPE, choices, gold)
        if problem:
            raise ConfigError(f"{name}: row {number}: {problem}; the rows do not fit the task's definition")
        seen.add((str(prompt), str(choices)))
    if count > 1 and len(seen) == 1 and task.OUTPUT_TYPE != "loglikelihood_rolling":
        raise ConfigError(f"{name}: all {count} rows give one prompt; the rows do not fit the task's definition")
    return count


def _rendered(task: Any, row: Any) -> tuple[Any, Any, Any]:
    """(prompt, choices or None, gold answer) as the task's definition makes them of a row."""
    target = task.doc_to_target(row)
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return "", None, target
    prompt = task.doc_to_text(row)
    if task.OUTPUT_TYPE != "multiple_choice":
        return prompt, None, target
    # Tasks like WinoGrande choose the prompt: there the answer's number stands in the prompt's place.
    return prompt, task.doc_to_choice(row), prompt if isinstance(prompt, int) else target


def _problem(output_type: str, choices: Any, gold: Any) -> str | None:
    """What is wrong with a row, in words, or None."""
    golds = gold if isinstance(gold, list) else [gold]
    if output_type != "multiple_choice":
        return None if golds and all(_is_text(str(answer)) for answer in golds) else "there is no text to predict"
    if not isinstance(choices, list) or len(choices) < 2 or not all(map(_is_text, choices)):
        return f"the choices are {_short(choices)}"
    for answer in golds:
        inside = 0 <= answer < len(choices) if isinstance(answer, int) else answer in choices
        if not inside:
            return f"the answer {_short(answer)} is none of the {len(choices)} choices"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
