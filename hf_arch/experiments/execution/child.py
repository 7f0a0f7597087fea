"""The process of one run: its recipe is resolved already, and it ends when the runner does, however that ended.

    python -m hf_arch.experiments.execution.child train FOLDER

trains the run that `FOLDER/experiment_config.json` describes, or resumes it, as `hf-arch train` would, but with nothing
left to plan. (`serve` in place of `train` forks into such processes: `fork_server`.) Exit codes are those of the
command line. What went wrong is in `results.json`, with `retry: false` where another try would end the same.

The runner holds the other end of standard input and never writes; the end of that file means that the runner is gone,
also where it was killed. A child that lived on would train in a folder that another worker has taken over.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from hf_arch.core.collector import without_collection
from hf_arch.core.errors import ConfigError
from hf_arch.core.failures import Interrupted, TrainingError
from hf_arch.core.heap import keep_memory
from hf_arch.core.one_writer import only_writer
from hf_arch.core.quiet import prepare_process
from hf_arch.core.threads import prepare_threads
from hf_arch.experiments.execution.fork_server import serve
from hf_arch.experiments.execution.process import WRONG_USAGE
from hf_arch.runs.files import CONFIG_FILE
from hf_arch.runs.record import write_end


def end_with_parent() -> None:
    """Waits for the end of standard input, then ends this process at once."""
    while os.read(0, 1024):
        continue
    os._exit(1)


def restore_sigint() -> None:
    """Undoes an ignored SIGINT, which a process started in a shell's background inherits and hands on: a run that
    ignores it cannot be stopped at a checkpoint."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def train_folder(folder: Path) -> int:
    """Trains the run in `folder` and returns the exit code."""
    with without_collection():
        from hf_arch.recipe.recipe import load_recipe
        from hf_arch.training.launch import is_main_process, leave
        from hf_arch.training.run import print_results, run_training

    try:
        with only_writer(folder, wait=True):  # the process of a worker that was cut off may be saving its checkpoint
            pass
        recipe = load_recipe(folder / CONFIG_FILE)
        results = run_training(recipe, folder, resume=True)
        leave()
        print_results(results, folder)
        return 0
    except Interrupted as error:
        return _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _print_error("interrupted", 128 + signal.SIGINT)
    except (ConfigError, TrainingError) as error:
        if is_main_process():
            kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
            write_end(folder, None, "failed", f"{kind}{error}", retry=False)
        return _print_error(str(error), WRONG_USAGE if isinstance(error, ConfigError) else 1)
    except Exception as error:
        traceback.print_exception(error)
        return _print_error(f"{type(error).__name__}: {error}", 1)


def _print_error(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def main(arguments: list[str]) -> int:
    """Trains the run in the folder that `arguments` name and returns the exit code."""
    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    restore_sigint()
    folder = Path(arguments[1])
    # The command that provenance names, which does the same by hand.
    sys.argv = ["hf-arch", "train", str(folder / CONFIG_FILE), "--output-dir", str(folder), "--resume"]
    return train_folder(folder)


if __name__ == "__main__":
    run_arguments = sys.argv[1:]
    prepare_process()
    prepare_threads()
    keep_memory()
    if run_arguments[0] == "serve":
        run_arguments = serve(int(run_arguments[1]))
    sys.exit(main(run_arguments))
