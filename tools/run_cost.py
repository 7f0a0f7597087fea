"""Processor time of one short `hf-arch train`, here and in another checkout, in turn.

    python -m tools.run_cost [--against FOLDER] [--rounds 3] [KEY=VALUE ...]

User and system time of the whole command: imports, data that is prepared already, two steps, scores, speed and sample.
A first run of each, which prepares the data and writes compiled files, is not counted. Compare within one call alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = """
model: {architecture: llama, num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, tie_word_embeddings: true}
data: {corpus: shakespeare, tokenizer: bpe, vocab_size: 1024, sequence_length: 128}
training: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 3.0e-3, seed: 1}
"""
HERE = Path(__file__).resolve().parents[1]


def seconds(checkout: Path, recipe: Path, overrides: list[str], scratch: Path) -> float:
    """User and system seconds of one run with the code in `checkout`."""
    hidden = ("PYTHONDONTWRITEBYTECODE",)
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"PYTHONPATH": str(checkout), "PYTHONPYCACHEPREFIX": str(scratch / "compiled")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, "-m", "hf_arch", "train", str(recipe), *overrides, "--output-dir", f"{folder}/run"]
        subprocess.run(
            command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=scratch
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    checkouts = [HERE] if arguments.against is None else [arguments.against.resolve(), HERE]
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder, "recipe.yaml")
        recipe.write_text(RECIPE)
        taken: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
        for round_number in range(arguments.rounds + 1):
            for checkout in checkouts:
                spent = seconds(checkout, recipe, arguments.overrides, Path(folder))
                if round_number > 0:
                    taken[checkout].append(spent)
    for checkout, all_spent in taken.items():
        print(f"{checkout}: {statistics.median(all_spent):.2f} s ({', '.join(f'{one:.2f}' for one in all_spent)})")


if __name__ == "__main__":
    main()
