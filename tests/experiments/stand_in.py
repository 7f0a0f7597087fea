"""A run without a model: what the workers start in place of training. Behaves as its config's `run.does` says.

counts its starts in starts.txt, so that a test can see that no run came twice; `steps` of `seconds` each, with a
checkpoint after each, from which it goes on. Its first start never gets past step `holds`: it waits to be stopped.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def main(config: Path, folder: Path) -> int:
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    run = json.loads(config.read_text())["run"]
    does, results, checkpoint = run.get("does", ""), folder / "results.json", folder / "step"
    with (folder / "starts.txt").open("a") as file:
        file.write("start\n")
    starts = len((folder / "starts.txt").read_text().splitlines())
    if does == "usage":
        print("error: model.hidden_size: is wrong", file=sys.stderr)
        return 2
    write(results, "running", "running", name=run["name"])
    try:
        for step in range(int(checkpoint.read_text()) if checkpoint.exists() else 0, run.get("steps", 1)):
            time.sleep(run.get("seconds", 0.0))
            while starts == 1 and step == run.get("holds"):
                time.sleep(0.02)
            if does == "raise" or (does == "raise once" and starts == 1):
                raise RuntimeError("the mixer is broken")
            if does == "nan":
                write(results, "failed", "TrainingError: the loss became nan by step 3", retry=False)
                return 1
            if does == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            checkpoint.write_text(str(step + 1))
    except KeyboardInterrupt:
        write(results, "interrupted", "interrupted by the user")
        return 1
    except RuntimeError as error:
        write(results, "failed", f"RuntimeError: {error}")
        raise
    write(results, "completed", "completed", steps=int(checkpoint.read_text()))
    return 0


def write(results: Path, status: str, reason: str, **more: object) -> None:
    temporary = results.with_suffix(".tmp")
    temporary.write_text(json.dumps({"status": status, **more, "provenance": {"exit_reason": reason}}))
    temporary.replace(results)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
