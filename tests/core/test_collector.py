"""No search for cycles while a process imports; the searches afterwards are as before."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from hf_arch.core.collector import without_collection


@pytest.fixture(autouse=True)
def thawed():
    """Nothing counts as living for ever at the start, as in a new process; in the end all that the tests share does."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_the_collector_is_as_it_was_whatever_the_imports_raise() -> None:
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            with pytest.raises(ImportError), without_collection():
                assert not gc.isenabled()
                raise ImportError
            assert gc.isenabled() is enabled
        finally:
            gc.enable()


def test_cycles_made_afterwards_are_found() -> None:
    with without_collection():
        pass
    cycle: list = []
    cycle.append(cycle)
    del cycle
    assert gc.collect() >= 1


def test_only_the_first_is_for_ever() -> None:
    with without_collection():
        pass
    first = gc.get_freeze_count()
    assert first > 0
    later = [[] for _ in range(1000)]
    with without_collection():
        pass
    assert gc.get_freeze_count() <= first and len(later) == 1000


@pytest.mark.rest
def test_the_process_of_a_run_collects_again_once_it_has_imported(tmp_path: Path) -> None:
    program = (
        "import gc, sys\nfrom pathlib import Path\nfrom hf_arch.experiments.execution.child import train_folder\n"
        "code = train_folder(Path(sys.argv[1]))\nprint(code, gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program, str(tmp_path)]  # without a recipe
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "2 True True", done.stderr
