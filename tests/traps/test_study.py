"""The study behind `recipes/experiments/confounds.yaml`: large leads that a short convolution and the scale of branches
at the start explain. Losses as they were measured once; its page has to say so."""

from __future__ import annotations

import random
import re
from pathlib import Path

from hf_arch.analysis.compare import compare_runs
from hf_arch.report.page import write_report
from tests.experiments.synthetic import write_run

HYPOTHESIS = "gdn better than gla; gdn better than kda; kda_silu better than kda."
RUNS = {  # loss, what its mixer writes at the start, short convolution, architecture, the gate of KDA
    "gdn": (4.25, 0.003, True, "gated_delta_net", None),
    "kda": (4.80, 0.023, True, "kda", None),
    "kda_silu": (4.27, 0.0005, True, "kda", "silu"),
    "gla": (4.98, 0.020, False, "gla", None),
    "gla+short_convolution": (4.32, 0.0001, True, "gla", None),
    "gla+short_convolution+branch_scale": (4.28, 0.003, True, "gla", None),
    "kda+branch_scale": (4.30, 0.003, True, "kda", None),
    "kda_silu+branch_scale": (4.76, 0.023, True, "kda", "silu"),
}
CONVOLUTION, SCALE = "the short convolution is on both sides", "their branches begin with the same scale"
STAGES = [
    (("gla", "gdn"), ["short convolution"], "gla+short_convolution", CONVOLUTION),
    (("gla", "gdn"), ["short convolution", "branch scale"], "gla+short_convolution+branch_scale", SCALE),
    (("kda", "gdn"), ["branch scale"], "kda+branch_scale", SCALE),
    (("kda_silu", "kda"), ["branch scale"], "kda_silu+branch_scale", SCALE),
]


def test_the_page_says_what_an_examination_found(tmp_path: Path) -> None:
    for name, (loss, written, convolved, architecture, gate) in RUNS.items():
        stages = [
            {"pair": list(pair), "removes": removes, "runs": [run, pair[1]], "words": words}
            for pair, removes, run, words in STAGES
            if run == name
        ]
        control = {"control": {"of": name.partition("+")[0], "stages": stages}} if stages else {}
        model = {"architecture": architecture, "gate_activation": gate}
        run = {"learning_rates": None, "question": ["model.architecture", "model.gate_activation"], **control}
        facts = {
            "architecture": architecture,
            "branch_scale": {"mixer": [written / 0.020] * 3, "ffn": [0.3] * 3},
            "short_convolution": {"layers": [0, 1, 2] if convolved else []},
        }
        for seed in (1, 2, 3):
            noise = random.Random(f"{name}{seed}").gauss(0, 0.01)
            config = {"model": model, "run": run}
            write_run(tmp_path, name, seed, loss=loss + noise, hypothesis=HYPOTHESIS, results=facts, config=config)
    comparison = compare_runs(tmp_path)
    verdicts = {verdict.claim: verdict for verdict in comparison.verdicts}
    assert {verdict.statistics for verdict in verdicts.values()} == {"supported"}
    assert {verdict.outcome for verdict in verdicts.values()} == {"confounded"}
    assert set(verdicts["gdn better than gla"].confounds) == {"learning rate", "short convolution", "branch scale"}
    assert set(verdicts["gdn better than kda"].confounds) == {"learning rate", "branch scale"}
    assert verdicts["kda_silu better than kda"].confounds == ("branch scale",)
    claims = ["gdn better than gla"] * 2 + ["gdn better than kda", "kda_silu better than kda"]
    removes = [tuple(stage[1]) for stage in STAGES]
    assert [(control.claim, control.removes) for control in comparison.controls] == list(
        zip(claims, removes, strict=True)
    )
    left = [control.after.difference for control in comparison.controls]
    assert all(abs(found.mean) < 0.09 for found in left if found is not None) and None not in left
    assert comparison.controls[0].confounds == ("learning rate", "branch scale")
    assert comparison.controls[3].confounds == ()
    page = write_report(tmp_path, comparison=comparison, png=False).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "is confounded (" in comparison.headline
    assert re.search(
        r"0\.7\d nats between gdn and gla; 0\.0\d .* of it remains once .* the same scale", comparison.headline
    )
    assert all(control.sentence in page for control in comparison.controls)
