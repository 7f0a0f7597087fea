"""How much of the spread of training speed the load of the machine explains, over runs of one model in a folder.

    python -m tools.load_and_speed [FOLDER ...]

Without a folder, over the records of the atlas that know it (`docs/atlas/mqar.jsonl`). Runs with `machine_load` and one
thread are grouped by model, precision and steps; within groups, the logarithm of tokens a second is fitted on the
logarithm of the share of its processor time that a run had, on the other processes for each core, and on these once the
share is known. What `analysis/audits/machine.py` takes as its limits was read off this.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from math import log, sqrt
from pathlib import Path

import numpy as np

from tools.atlas_records import RECORDS, lines


def main(folders: list[str]) -> None:
    results = [
        json.loads(file.read_text()) for folder in folders for file in sorted(Path(folder).rglob("results.json"))
    ]
    if not folders:
        results = [line["results"] for line in lines(RECORDS / "mqar.jsonl")]
    groups: dict[tuple[object, ...], list[tuple[float, float, float]]] = defaultdict(list)
    for facts in results:
        load = facts.get("machine_load") or {}
        if facts.get("status") != "completed" or load.get("threads") != 1 or not load.get("processor_share"):
            continue
        others = max(0.0, max(load["start"], load["end"]) - 1) / load["cores"]
        key = tuple(
            facts.get(name) for name in ("architecture", "params_total", "sequence_length", "precision", "steps")
        )
        groups[key].append((log(load["processor_share"]), others, log(facts["train_tokens_per_second"])))
    several = [np.array(group) for group in groups.values() if len(group) > 1]
    if not several:
        raise SystemExit("no two runs of one model with machine_load and one thread")
    runs = np.concatenate(several)
    within = np.concatenate([group - group.mean(0) for group in several])
    speed, degrees = within[:, 2], len(within) - len(several) - 1
    print(f"{len(within)} runs of {len(several)} models; speed within a model: {speed.std():.1%} (sd of its logarithm)")
    print(f"share of processor time {np.exp(runs[:, 0].min()):.2f} to {np.exp(runs[:, 0].max()):.2f}")
    print(f"others for each core {runs[:, 1].min():.2f} to {runs[:, 1].max():.2f}")
    share, others = within[:, 0], within[:, 1]
    alone = others - share * float(share @ others / (share @ share))
    known = speed - share * float(share @ speed / (share @ share))
    for name, values, of in (
        ("log share", share, speed),
        ("others for each core", others, speed),
        ("others for each core, the share known", alone, known),
    ):
        slope = float(values @ of / (values @ values))
        rest = of - slope * values
        half = 1.96 * sqrt(float(rest @ rest) / degrees / float(values @ values))
        explained = 1 - float(rest @ rest) / float(of @ of)
        five = log(1.05) / abs(slope)
        print(f"{name}: slope {slope:.2f} ± {half:.2f}, explains {explained:.0%}, 5 % at {five:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
