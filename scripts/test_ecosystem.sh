#!/usr/bin/env bash
# Tests what other libraries do with our models, in an environment of their own: .venv-ecosystem.
# Usage: bash scripts/test_ecosystem.sh [pytest arguments ...]     e.g. tests/ecosystem/test_peft.py -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 WANDB_MODE=offline

wanted=$(cat pyproject.toml constraints-ecosystem.txt <(pwd) | cksum)
if [ "$(cat .venv-ecosystem/.installed 2>/dev/null)" != "$wanted" ]; then
  printf '\n== Installing the libraries on top into .venv-ecosystem\n'
  "${PYTHON:-python3}" -m venv --clear .venv-ecosystem
  .venv-ecosystem/bin/python -m pip install -q --disable-pip-version-check -c constraints-ecosystem.txt \
    -e '.[eval,dev]' peft trl torchao optimum-quanto onnxscript
  echo "$wanted" >.venv-ecosystem/.installed
fi

printf '\n== Tests (pytest)\n'
.venv-ecosystem/bin/python -m pytest -q -m ecosystem tests/ecosystem --durations=5 "$@"
