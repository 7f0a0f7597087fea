#!/usr/bin/env bash
# Checks the package on one GPU and measures its speed there, in at most nine minutes and without a network.
# Usage: bash scripts/gpu_check.sh [--small] [--device cuda] [--out FOLDER] [--minutes 9] [--only PART,...]
# Takes the environment that `python3` names (or PYTHON), with this package's needs in it; `--small` runs on a CPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
export PYTHONUNBUFFERED=1
# torch 2.11 has crashed once while it saved a compiled backward pass to its cache.
export TORCHINDUCTOR_AUTOGRAD_CACHE=0
exec timeout --kill-after=10 590 "${PYTHON:-python3}" -m tools.gpu_check "$@"
