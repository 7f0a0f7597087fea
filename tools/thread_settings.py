"""Training speed under several settings of waiting threads, idle and beside other work.

    python -m tools.thread_settings [--busy 0 2] [--rounds 3] [--seconds 4]

Each setting is a process of its own, since a library of threads reads its variables once, when it is loaded. The
settings take turns, so that a change of the machine's load meets all of them. `--busy N` starts N processes that
compute without a pause. A row is the median and the range of tokens/s over the rounds, and the ratio to one thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

SETTINGS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 3000": {"GOMP_SPINCOUNT": "3000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
}
_BUSY = "while True: sum(range(10000))"
_STEPS = """
import sys, time, torch, hf_arch
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(hf_arch.config_from_dict(dict(architecture="llama", hidden_size=128,
    intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, vocab_size=512)))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
ids = torch.randint(512, (4, 128))
def step():
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step(); optimizer.zero_grad()
for _ in range(3): step()
start, steps = time.perf_counter(), 0
while time.perf_counter() < start + float(sys.argv[1]):
    step(); steps += 1
print(steps * ids.numel() / (time.perf_counter() - start))
"""


def tokens_per_second(setting: dict[str, str], seconds: float) -> float:
    """Of one process under `setting`, without what this process's environment says of threads."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    # PYTHONPATH may name this tree; the command itself has to be quiet but for its number.
    done = subprocess.run(
        [sys.executable, "-c", _STEPS, str(seconds)],
        env={**plain, **setting},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def measure(busy: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens/s of each setting in each round, beside so many busy processes."""
    others = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(busy)]
    try:
        speeds: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(rounds):
            for name, setting in SETTINGS.items():
                speeds[name].append(tokens_per_second(setting, seconds))
        return speeds
    finally:
        for process in others:
            process.kill()
            process.wait()


def table(speeds: dict[str, list[float]], busy: int) -> str:
    """The measurements as Markdown."""
    one = statistics.median(speeds["one thread"])
    lines = [f"| beside {busy} busy processes | tokens/s, median (range) | against one thread |", "|---|---|---|"]
    for name, seen in speeds.items():
        middle = statistics.median(seen)
        lines.append(f"| {name} | {middle:,.0f} ({min(seen):,.0f}-{max(seen):,.0f}) | {middle / one:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures and prints one table for each number of busy processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    for busy in options.busy:
        print(table(measure(busy, options.rounds, options.seconds), busy), flush=True)


if __name__ == "__main__":
    main()
