"""Runs statements, each as the first import of a process of its own, and tells what they raised.

Started by `tests/test_import_order.py`: a task is a line of JSON on standard input, its answer a line on standard
output. Fresh interpreters would take seconds each to import torch: the processes are forked from this one, which has
imported what transformers imports of other libraries, and nothing of transformers or hf_arch.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import sys
import traceback
from importlib.abc import MetaPathFinder
from multiprocessing.connection import Connection
from typing import Any

for name in (
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch.nn.attention.flex_attention"),
    *("scipy.optimize", "huggingface_hub.hf_api", "accelerate", "tokenizers", "jinja2.ext", "jinja2.sandbox", "regex"),
):
    importlib.import_module(name)
gc.freeze()

CHECK = """
import sys
models = sorted(name for name in sys.modules if name.startswith(("hf_arch.models", "hf_arch.layers")))
assert not models or LOADED_ALREADY, f"imported by somebody else's import: {models}"
import hf_arch
from transformers import AutoConfig
config = AutoConfig.for_model("hfa_gla", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=11)
from transformers import AutoModelForCausalLM
assert type(AutoModelForCausalLM.from_config(config)).__name__ == "HfaGLAForCausalLM"
"""


class Intruder(MetaPathFinder):
    """Executes a statement while another module imports `name`."""

    def __init__(self, name: str, statement: str):
        self.name, self.statement = name, statement

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == self.name:
            sys.meta_path.remove(self)
            exec(self.statement, {"__name__": "intruder"})


def attempt(statement: str, connection: Connection, hf_arch_first: bool, loads_models: bool) -> None:
    gc.disable()  # the process ends before there is much to find
    try:
        if hf_arch_first:
            import hf_arch  # noqa: F401
        exec(statement, {"__name__": "__main__", "Intruder": Intruder})
        exec(CHECK.replace("LOADED_ALREADY", str(loads_models)), {"__name__": "__main__"})
        connection.send("")
    except BaseException:
        connection.send(traceback.format_exc())


def failures(statements: list[str], hf_arch_first: bool, loads_models: bool) -> dict[str, str]:
    """What those that failed raised."""
    found = {}
    forked = multiprocessing.get_context("fork")
    for statement in statements:
        receiver, sender = forked.Pipe(duplex=False)
        process = forked.Process(target=attempt, args=(statement, sender, hf_arch_first, loads_models))
        process.start()
        sender.close()
        try:
            message = receiver.recv()
        except EOFError:
            message = "the process ended without a word"
        process.join()
        if message:
            found[statement] = message
    return found


def main() -> None:
    assert not {"transformers", "hf_arch"} & sys.modules.keys()
    for task in sys.stdin:
        print(json.dumps(failures(**json.loads(task))), flush=True)


if __name__ == "__main__":
    main()
