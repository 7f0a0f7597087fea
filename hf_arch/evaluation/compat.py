"""Every private or version-dependent name of lm_eval that evaluations touch, in one place.

`tests/test_compat.py` says of each name what rests on it.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.registry import register_model as register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils_hf import get_dtype as get_dtype
from lm_eval.tasks._index import Kind


class HookedLM(HFLM):
    """lm_eval's model, whose private hook is a method with a name of its own."""

    def score_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """Log likelihoods of continuations that are token ids already."""
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        return self.score_tokens(requests, *args, **kwargs)


def is_group(entry: Any) -> bool:
    """Whether an entry of lm_eval's index of tasks is a group of them."""
    return entry.kind is Kind.GROUP
