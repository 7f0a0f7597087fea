#!/usr/bin/env bash
# What a change must pass: format, lint, types and the fast test suite (CONTRIBUTING.md says how long it takes).
# Usage: bash scripts/test.sh [pytest arguments ...]     e.g. tests/mixers -x
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev

# One thread a worker: two OpenMP pools on two cores wait for each other. Nothing may reach a hub.
# Compiled files are kept: dozens of children would each compile the package anew.
unset PYTHONDONTWRITEBYTECODE
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline

say "Format and lint (ruff)"
.venv/bin/ruff format --check .
.venv/bin/ruff check .

say "Types (mypy)"
.venv/bin/mypy

say "Tests (pytest)"
.venv/bin/python -m pytest -q -n "${HF_ARCH_TEST_WORKERS:-2}" --durations=10 "$@"
