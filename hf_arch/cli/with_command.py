"""`hf-arch with COMMAND ...`: another library's command, in whose processes our model types are known.

    hf-arch with trl sft --model_name_or_path results/quickstart/gla_1a2b3c4d5e/model ...
    hf-arch with lm_eval --model hf --model_args pretrained=PATH --tasks hellaswag

Such commands never import hf_arch, and some start further processes (`trl` by `accelerate launch`). Nothing is
installed: the command takes this process's place with `startup_hook/` at the head of its PYTHONPATH, which imports
hf_arch in every Python that it starts. Exit codes and signals are the command's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from hf_arch.cli.panels import SHARE
from hf_arch.core.errors import ConfigError
from hf_arch.environment import read

HOOK = Path(__file__).parents[1] / "startup_hook"


def register(app: typer.Typer) -> None:
    """Enter the command into `app`."""
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}
    app.command("with", rich_help_panel=SHARE, context_settings=settings)(with_command)


def with_command(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND [ARGUMENT]...", help="The command as you would run it without `hf-arch with`."),
    ],
) -> NoReturn:
    """Run another library's command with our model types known to it: `trl`, `lm_eval`, `transformers`, `accelerate`.

    - `hf-arch with trl sft --model_name_or_path RUN/model --dataset_name ...`
    - `hf-arch with lm_eval --model hf --model_args pretrained=RUN/model --tasks hellaswag`
    """
    program = find_program(command[0])
    sys.stdout.flush()
    os.execve(program, [program, *command[1:]], hooked_environment({**os.environ}))


def find_program(name: str) -> str:
    """The file that `name` runs: of this Python's environment first, then on the PATH.

    Raises:
        ConfigError: there is none.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which(name, path=os.pathsep.join((beside, read("PATH") or os.defpath)))
    if program is None:
        raise ConfigError(
            f"COMMAND: no program {name!r} next to {sys.executable} or on the PATH; is its package installed?"
        )
    return program


def hooked_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with the hook, and where this package lies outside site-packages with its folder, on PYTHONPATH."""
    package = str(HOOK.parent.parent)
    wanted = [str(HOOK), *([] if package.endswith(("site-packages", "dist-packages")) else [package])]
    others = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path and path not in wanted]
    return {**environment, "PYTHONPATH": os.pathsep.join((*wanted, *others))}
