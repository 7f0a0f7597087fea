"""From lm_eval's samples to scores that small models can show.

Near chance, accuracy says little of a small model: it counts which of several unlikely answers is the least unlikely.
The same log-likelihoods hold more. For every item, with ll the summed log-likelihood of an answer in nats:

    bits per byte = -ll(gold) / (ln 2 * UTF-8 bytes of the gold answer),     margin = ll(gold) - max ll(wrong)

An item is right (lm_eval's `acc`) where its margin is above 0. Where several answers are gold, the likeliest counts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_arch.runs.items import COLUMNS

if TYPE_CHECKING:
    import pandas as pd

SCORES = ("bits_per_byte", "margin")


def item_rows(task: Any, samples: Sequence[Mapping[str, Any]]) -> pd.DataFrame | None:
    """One row an item (`runs/items.py`) of a task of lm_eval, or None where answers are not scored by likelihood."""
    import pandas as pd

    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
        return None
    rows = [_row(task, sample) for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def item_scores(items: pd.DataFrame) -> dict[str, float]:
    """Means over the items of `bits_per_byte` and `margin`, with their standard errors where there are two items."""
    found = {}
    for name in SCORES:
        values = items[name].dropna()
        if len(values):
            found[name] = float(values.mean())
        if len(values) > 1:
            found[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values)))
    return found


def _row(task: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    asked = [tuple(arguments) for arguments in sample["arguments"]]
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    margin = None
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = len(task.doc_to_choice(sample["doc"]))
        asked, likelihoods = asked[:choices], likelihoods[:choices]  # after these, the answers without a prompt
        golds = _golds(task, sample["doc"])
        gold = max(golds, key=lambda index: likelihoods[index])
        wrong = [value for index, value in enumerate(likelihoods) if index not in golds]
        margin = likelihoods[gold] - max(wrong) if wrong else None
    else:
        gold = 0
    size = len(str(asked[gold][1]).encode())
    nats = -likelihoods[gold]
    right = sample.get("acc", margin is not None and margin > 0)
    return {
        "item": hashlib.blake2b(repr(asked).encode(), digest_size=12).hexdigest(),
        "right": int(bool(right)),
        "nats": nats,
        "bytes": size,
        "bits_per_byte": nats / math.log(2) / size if size else math.nan,
        "margin": margin,
    }


def _golds(task: Any, doc: Any) -> list[int]:
    """Places of the right answers among the choices."""
    prompt = task.doc_to_text(doc)
    # Tasks like WinoGrande choose the prompt: there the answer's number stands in the prompt's place.
    target = prompt if isinstance(prompt, int) else task.doc_to_target(doc)
    choices = list(task.doc_to_choice(doc))
    golds = target if isinstance(target, list) else [target]
    return [gold if isinstance(gold, int) else choices.index(gold) for gold in golds]
