"""The grammar of claims: a claim for every run that is named, or one line that says how to write it."""

from __future__ import annotations

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.runs.claim_checks import check_claims
from hf_arch.runs.claims import claims_in

NAMES = ("gla", "kda", "mamba", "llama")


@pytest.mark.parametrize(
    ("hypothesis", "claims"),
    [
        ("gla and kda better than llama", ("gla better than llama", "kda better than llama")),
        (
            "gla, kda, and mamba worse than llama.",
            ("gla worse than llama", "kda worse than llama", "mamba worse than llama"),
        ),
        ("gla better than llama and kda", ("gla better than llama", "gla better than kda")),
        ("gla is better than llama, kda and mamba; it is fast", tuple(f"gla better than {n}" for n in NAMES[3:0:-1])),
        ("Both gla and kda are within 0.1 of llama", ("gla within 0.1 of llama", "kda within 0.1 of llama")),
        ("gla and kda at least 0.9", ("gla at least 0.9", "kda at least 0.9")),
        ("We expect gla and kda better than llama", ("gla better than llama", "kda better than llama")),
        (
            "gla and kda better than llama and mamba",
            tuple(f"{a} better than {b}" for a in NAMES[:2] for b in ("llama", "mamba")),
        ),
        ("gla better than llama and kda better than mamba", ("gla better than llama", "kda better than mamba")),
        ("gla better than llama and gates help", ("gla better than llama",)),
        ("with rates tuned and gla better than llama", ("gla better than llama",)),
        (
            "gla and kda solves in at least 0.8 of its seeds",
            tuple(f"{n} solves in at least 0.8 of its seeds" for n in NAMES[:2]),
        ),
    ],
)
def test_every_run_that_and_joins_has_a_claim(hypothesis: str, claims: tuple[str, ...]) -> None:
    found = claims_in(hypothesis)
    assert sorted(found) == sorted(claims)
    check_claims(hypothesis, NAMES)


@pytest.mark.parametrize(
    ("hypothesis", "meant"),
    [
        ("we trained kda and gla better than llama", "'kda better than llama; gla better than llama'"),
        ("gla better than llama and kda on every seed", "'gla better than kda; gla better than llama'"),
    ],
)
def test_half_of_a_claim_is_refused_with_the_form_that_works(hypothesis: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="would be judged without 'kda'") as caught:
        check_claims(hypothesis, NAMES)
    assert meant in str(caught.value) and "\n" not in str(caught.value)
    assert len(claims_in(meant.strip("'"))) == 2


@pytest.mark.parametrize(
    ("hypothesis", "told"),
    [
        ("gla beter than llama", "nearest: 'gla better than llama'"),
        ("gla better then llama", "nearest: 'gla better than llama'"),
        ("gla faster than llama", "nearest: 'gla better than llama'"),
        ("gla witin 0.1 of llama", "nearest: 'gla within 0.1 of llama'"),
        ("gla within 5% of llama", "nearest: 'gla within 5 of llama'"),
        ("gla at lest 0.9", "nearest: 'gla at least 0.9'"),
        ("gla solves more ofen than llama", "nearest: 'gla solves more often than llama'"),
        ("gla slightly worse than llama", "'slightly' is not the name of a run; allowed: a claim such as"),
        ("gla is not better than llama", "'not' is not the name of a run"),
        ("gla better than both llama and mamba", "'both' is not the name of a run"),
        ("gla better than llama but worse than mamba", "no run on its left"),
        ("gla better than llama by 0.1", "allowed: a claim alone, such as 'gla better than llama'"),
        ("gla at most 1.9 bits per byte", "in the unit of `experiment.metric`"),
        ("gla at most 1,9", "in the unit of `experiment.metric`"),
        ("gla at least 99 %", "in the unit of `experiment.metric`"),
        ("neither gla nor mamba better than llama", "says something else"),
        ("gla better than gla", "compares a run with itself"),
        ("gla at least llama", "needs a number"),
        ("gla better than 0.9", "needs a run"),
        ("gla solves in at least 80 of its seeds", "allowed: 0 to 1"),
    ],
)
def test_what_reads_as_a_claim_and_is_none_is_refused(hypothesis: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^experiment\.hypothesis: ") as caught:
        check_claims(hypothesis, NAMES)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "hypothesis",
    [
        "gla and llama train in 20 minutes",
        "llama is gla with softmax",
        "The loss falls well below that of a uniform guess.",
        "Every linear mixer trains at 0.6 of llama's speed or more, mamba at 0.4.",
        "gla within 1e-2 of llama (said before the first measurement).",
        "gla worse than llama in loss",
        "rwkv better than mamba",
    ],
)
def test_free_text_is_free(hypothesis: str) -> None:
    check_claims(hypothesis, NAMES)
