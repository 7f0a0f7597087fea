"""Runs programs, each in a process that has imported neither transformers nor hf_arch, and tells how it ended.

Started by `tests/fresh.py`: a program is a line of JSON on standard input, its end a line on standard output. A fresh
interpreter takes seconds to import torch: the processes are forked from this one, which has imported what transformers
imports of other libraries. Nothing of Hugging Face is among that: it reads the environment when it is imported.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import tempfile
import traceback
from types import ModuleType
from typing import Any

LIBRARIES = (
    *("torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch.nn.attention.flex_attention"),
    *("scipy.optimize", "jinja2.ext", "jinja2.sandbox", "regex", "pandas"),
)


def run(code: str, arguments: list[str], environment: dict[str, str], folder: str) -> dict[str, Any]:
    """What `python -c code arguments` would print there, and its exit code; minus the signal that ended it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_become(code, arguments, environment, folder, out.fileno(), err.fileno()))
        end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode(errors="replace"))
    return {"returncode": end, "stdout": printed[0], "stderr": printed[1]}


def _become(code: str, arguments: list[str], environment: dict[str, str], folder: str, out: int, err: int) -> int:
    """Runs the program in this process, as a new interpreter would, and returns its exit code."""
    for descriptor, number in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", closefd=False) for number in range(3)
    )
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[0:1] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = ["-c", *arguments]
    main = sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(compile(code, "<string>", "exec"), main.__dict__)
        end: Any = 0
    except SystemExit as error:
        end = error.code
    except BaseException:
        traceback.print_exc()
        end = 1
    if end is not None and not isinstance(end, int):
        print(end, file=sys.stderr)
        end = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return end or 0


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    assert not {"transformers", "hf_arch", "huggingface_hub"} & sys.modules.keys()
    gc.freeze()
    for task in sys.stdin:
        print(json.dumps(run(**json.loads(task))), flush=True)


if __name__ == "__main__":
    main()
