#!/usr/bin/env bash
# Train and compare gpt2, llama, gla and mamba at equal size on Shakespeare, on this machine, in minutes.
# Usage: bash scripts/quickstart.sh [key=value ...]      e.g. training.max_steps=20 for a first look
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

results=results/quickstart
say "Training four architectures (again: finished runs are kept)"
.venv/bin/hf-arch run recipes/quickstart/quickstart.yaml --results-dir "$results" "$@"

say "Comparison"
.venv/bin/hf-arch compare --latest 4 --results-dir "$results"

say "A sample of each"
for run in "$results"/*/model; do
  printf '\n-- %s\n' "$(basename "$(dirname "$run")")"
  .venv/bin/hf-arch generate "$run" --prompt "ROMEO: " --max-new-tokens 120 --temperature 0.8 --top-k 40 --seed 0
done

.venv/bin/hf-arch report "$results"
say "Done. Open $PWD/$results/report.html in a browser"
