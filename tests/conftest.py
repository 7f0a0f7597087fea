"""Settings of every test process: one torch thread, no hub, no tracker on the network."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_ARCH_PRECISION", "fp32")  # not what happens to be faster on this machine
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import gc
import signal
from collections.abc import Iterator

import pytest
import torch

from tests.fresh import Fresh, fresh_processes
from tests.sampling import mark_the_rest

torch.set_num_threads(1)
gc.disable()  # while the tests are collected, which only adds to the heap


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_the_rest(items)


def pytest_collection_finish() -> None:
    """What is there when the tests begin lives to their end: no search for cycles looks through it again."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def interrupts_are_heard() -> None:
    """A shell's background ignores SIGINT, and so would every process that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def imports_before_tests() -> None:
    """transformers greets on stdout where W&B is offline: not in the midst of a test, please."""
    import transformers.integrations.integration_utils  # noqa: F401


@pytest.fixture(scope="session")
def fresh() -> Iterator[Fresh]:
    """Runs programs in processes in which nobody has imported transformers or hf_arch."""
    with fresh_processes() as run:
        yield run


@pytest.fixture(autouse=True)
def seed() -> None:
    """Each test draws the same numbers alone, in any order and on any worker."""
    if torch.cuda.is_available():
        torch.manual_seed(0)
    else:  # the same without what it notes for devices that there are not: the whole stack of calls, each time
        torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def plugins_end_with_their_test() -> Iterator[None]:
    """What a test loads from a user's file is unknown to the next, whichever that is on this worker."""
    from hf_arch.core.plugins import separate_plugins

    with separate_plugins():
        yield
