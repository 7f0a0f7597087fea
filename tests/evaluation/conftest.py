"""A finished tiny run, shared with the tests of training."""

from tests.training.conftest import cache, finished, text

__all__ = ["cache", "finished", "text"]
