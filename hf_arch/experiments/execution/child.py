"""`hf-arch` as the child of a runner: the same command line, and it ends when the runner does, however that ended.

    python -m hf_arch.experiments.execution.child train CONFIG --output-dir FOLDER --resume

The runner holds the other end of standard input and never writes; the end of that file means that the runner is gone,
also where it was killed. A child that lived on would train in a folder that another worker has taken over.
"""

from __future__ import annotations

import os
import sys
import threading


def end_with_parent() -> None:
    """Waits for the end of standard input, then ends this process at once."""
    while os.read(0, 1024):
        continue
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, name="end with parent", daemon=True).start()
    sys.argv[0] = "hf-arch"  # the command that provenance names
    from hf_arch.cli import main

    main()
