"""Items of benchmarks: bits per byte of the gold answer and the margin are those of the model's own likelihoods."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (extra `eval`)")

from hf_arch.evaluation.harness import load_tasks, score
from hf_arch.evaluation.local_tasks import simple_qa
from tests.evaluation.tiny import byte_tokenizer, tiny_model


def test_items_are_the_models_likelihoods(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gla"), byte_tokenizer()
    tasks = load_tasks(["simple_qa", "arithmetic_1dc"], rows="local", limit=5)
    items: dict = {}
    scores = score(model, tokenizer, tasks, limit=5, rows="local", items=items)
    table = items["simple_qa"]
    for row, doc in zip(table.to_dict("records"), simple_qa()["test"].select(range(5)), strict=True):
        likelihoods = []
        for choice in doc["choices"]:
            context, answer = (tokenizer(text)["input_ids"] for text in (doc["question"], f" {choice}"))
            with torch.no_grad():
                logits = model(torch.tensor([[*context, *answer]])).logits.log_softmax(-1)[0, len(context) - 1 : -1]
            likelihoods.append(logits.gather(1, torch.tensor(answer)[:, None]).sum().item())
        gold = likelihoods.pop(doc["gold"])
        assert row["nats"] == pytest.approx(-gold, abs=1e-3)
        assert row["bytes"] == len(f" {doc['choices'][doc['gold']]}".encode())
        assert row["bits_per_byte"] == pytest.approx(-gold / math.log(2) / row["bytes"], abs=1e-4)
        assert row["margin"] == pytest.approx(gold - max(likelihoods), abs=1e-3)
        assert row["right"] == (row["margin"] > 0)
    entry = scores["simple_qa"]
    assert entry["bits_per_byte"] == pytest.approx(table["bits_per_byte"].mean())
    assert entry["margin"] == pytest.approx(table["margin"].mean()) and entry["acc"] == table["right"].mean()
    assert table["item"].nunique() == 5
    numbers = items["arithmetic_1dc"]
    assert numbers["margin"].isna().all() and (numbers["bits_per_byte"] > 0).all()
    assert "margin" not in scores["arithmetic_1dc"] and scores["arithmetic_1dc"]["bits_per_byte"] > 0
