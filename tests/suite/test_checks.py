"""Every architecture passes what `hf-arch check` holds a user's mixer to."""

from __future__ import annotations

import pytest

import hf_arch
from hf_arch.checks import check_model
from tests.suite.models import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_fails(name):
    assert [result for result in check_model(hf_arch.tiny_config(name)) if not result.passed] == []
