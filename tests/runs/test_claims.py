"""The grammar of claims: a claim for every run that is named, or one line that says how to write it."""

from __future__ import annotations

import pytest

from hf_arch.core.errors import ConfigError
from hf_arch.runs.claims import check_joined, claims_in

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
    check_joined(hypothesis, NAMES)


@pytest.mark.parametrize(
    ("hypothesis", "meant"),
    [
        ("we trained kda and gla better than llama", "'kda better than llama; gla better than llama'"),
        ("gla better than llama and kda on every seed", "'gla better than kda; gla better than llama'"),
    ],
)
def test_half_of_a_claim_is_refused_with_the_form_that_works(hypothesis: str, meant: str) -> None:
    with pytest.raises(ConfigError, match="would be judged without 'kda'") as caught:
        check_joined(hypothesis, NAMES)
    assert meant in str(caught.value) and "\n" not in str(caught.value)
    assert len(claims_in(meant.strip("'"))) == 2
