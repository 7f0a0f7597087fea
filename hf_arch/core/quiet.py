"""Libraries that say only what is wrong, while our own reports stand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from dotenv import load_dotenv

from hf_arch import environment
from hf_arch.core.light_imports import lighten_imports


def prepare_process() -> None:
    """What every process of ours sets at its start: the keys in `.env`, no chatter of libraries, and no imports of
    theirs without need."""
    environment.set_variable("TOKENIZERS_PARALLELISM", "false")
    # Installed, torchao says at every import of transformers which kernels it was not built with.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    load_dotenv(".env")  # of the working folder alone; what the environment has already wins
    environment.warn_unknown()
    lighten_imports()


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """transformers prints errors only, and its progress bars stay off."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(transformers|accelerate|torch)(\.|$)")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
