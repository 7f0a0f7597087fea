#!/usr/bin/env bash
# Train and compare gpt2, llama, gla and mamba at equal size on Shakespeare, on this machine, in minutes.
# Usage: bash scripts/quickstart.sh [key=value ...]      e.g. training.max_steps=20 for a first look
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

results=results/quickstart
say "Training four architectures, one after another (run this again: finished runs are kept)"
.venv/bin/hf-arch run recipes/quickstart/quickstart.yaml --results-dir "$results" "$@"

say "A sample of each"
.venv/bin/python - "$results" <<'EOF_PYTHON'
import json, pathlib, sys
for file in sorted(pathlib.Path(sys.argv[1]).glob("*/results.json")):
    results = json.loads(file.read_text())
    if sample := results.get("sample"):
        print(f"-- {file.parent.name}\n{sample['prompt']}{sample['text']}\n")
EOF_PYTHON

say "Done. Open $PWD/$results/report.html in a browser"
