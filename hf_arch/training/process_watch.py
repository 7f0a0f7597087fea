"""What a plugin may set for the whole process while a run trains, and may have taken back by its end: settings of
torch, modes that see every operation, hooks on what is kept for the backward pass, code that runs beside the training.

It is looked at between the backward pass and the optimiser, where nothing of a model runs and where whatever a forward
pass has set for the process still holds, in the first steps and at the first of each quarter.
"""

from __future__ import annotations

import gc
import re
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from hf_arch.core.plugin_patches import from_plugin
from hf_arch.core.plugin_source import PLUGIN_MODULE
from hf_arch.runs.process_settings import process_settings
from hf_arch.training.between_steps import is_looked_at
from hf_arch.training.compat import modes_of_operations, saves_tensors_otherwise

_NUMBER = re.compile(r"\d+")
"""In the name of a thread: how many there were before it in the process."""


class ProcessWatch(TrainerCallback):
    """To be added to a trainer. `found` are the names of what was seen."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_looked_at(state):
            self.found |= set(_in_effect())


def _in_effect() -> Iterator[str]:
    yield from (f"{name} {value}" for name, value in process_settings().items())
    yield from (f"mode {type(mode).__name__}" for mode in modes_of_operations())
    if saves_tensors_otherwise():
        yield "saved_tensors_hooks"
    own = threading.get_ident()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for thread, frame in sys._current_frames().items():
        if thread != own and _is_in_plugin(frame):
            yield f"thread {_NUMBER.sub('N', names.get(thread, 'without a name'))}"
    called: dict[str, Any] = {"trace": sys.gettrace(), "profile": sys.getprofile()}
    called |= {f"gc.callbacks.{index}": one for index, one in enumerate(gc.callbacks)}
    called |= {number.name: signal.getsignal(number) for number in signal.Signals}
    yield from (name for name, function in called.items() if function is not None and from_plugin(function))


def _is_in_plugin(frame: FrameType | None) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(PLUGIN_MODULE):
            return True
        frame = frame.f_back
    return False
