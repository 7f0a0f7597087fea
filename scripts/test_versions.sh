#!/usr/bin/env bash
# The model suites on the newest supported transformers, in an environment of its own (`.venv-newest`); `.venv` has the
# oldest (constraints.txt). Usage: bash scripts/test_versions.sh [pytest arguments ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev .venv-newest constraints-newest.txt
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline

.venv-newest/bin/python -c 'import torch, transformers; print(f"torch {torch.__version__}, transformers {transformers.__version__}")'
if [ $# -eq 0 ]; then
  set -- tests/suite tests/modeling tests/test_import.py tests/test_import_order.py tests/test_versions.py \
    tests/test_compat.py tests/hub/test_bundle.py -m "(rest or not rest) and not slow and not distributed"
fi
.venv-newest/bin/python -m pytest -q -n "${HF_ARCH_TEST_WORKERS:-2}" --durations=10 "$@"
