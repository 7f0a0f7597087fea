#!/usr/bin/env bash
# Build wheel and sdist into dist/, check them, and try the wheel in clean environments outside the clone.
# Usage: bash scripts/release.sh [PYTHON=CONSTRAINTS ...]
#   by default the oldest and newest supported pair: python3.11=constraints.txt python3.13=constraints-newest.txt
# Environments are kept in .venv-release/ while pyproject.toml and the constraints stay as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

pairs=("$@")
if [ ${#pairs[@]} -eq 0 ]; then pairs=(python3.11=constraints.txt python3.13=constraints-newest.txt); fi

# interpreter NAME: its path; pyenv's newest of that version where PATH has none that runs.
interpreter() {
  local candidate
  for candidate in "$(command -v "$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"${1#python}".*/bin/python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import venv' 2>/dev/null; then echo "$candidate"; return; fi
  done
  die "$1 was not found; name another interpreter: bash scripts/release.sh PYTHON=CONSTRAINTS ..."
}
for pair in "${pairs[@]}"; do
  [ -f "${pair#*=}" ] || die "$pair: no constraints file at '${pair#*=}'"
  interpreter "${pair%%=*}" >/dev/null
done

say "Building"
mkdir -p .venv-release
tools=.venv-release/tools
if ! "$tools/bin/python" -c 'import build, twine' 2>/dev/null; then
  "$(interpreter "${pairs[0]%%=*}")" -m venv --clear "$tools"
  "$tools/bin/python" -m pip install -q --disable-pip-version-check build twine
fi
rm -rf dist
"$tools/bin/python" -m build --outdir dist . >.venv-release/build.log 2>&1 || { tail -20 .venv-release/build.log >&2; die "the build failed"; }
"$tools/bin/python" -m twine check --strict dist/*
"$tools/bin/python" -m tools.distribution dist
wheel=$(echo "$PWD"/dist/*.whl)

# try_wheel ENVIRONMENT: what a user does first, from an empty folder, without the clone on any path.
try_wheel() (
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  unset PYTHONPATH HF_ARCH_PLUGINS
  export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline HF_ARCH_CACHE="$work/cache" TOKENIZERS_PARALLELISM=false
  step() { timeout 300 "$@" >log.txt 2>&1 || { tail -20 log.txt >&2; die "failed: ${*#"$1/"}"; }; echo "  ${*#"$1/"}" | sed "s#$1#$(basename "$1")#"; }
  python=$1/bin/python arch=$1/bin/hf-arch
  step "$python" -c "import hf_arch, sys; assert hf_arch.__file__.startswith(sys.prefix), hf_arch.__file__"
  step "$arch" list
  step "$arch" info gla
  mixer=$("$python" -c "from hf_arch.core.recipes import find_recipe; print(find_recipe('new_mixer/compare').with_name('moving_average.py'))")
  step "$arch" train quickstart --run gla --output-dir run data.corpus=python-docs data.tokenizer=byte \
    data.max_train_tokens=20000 data.max_validation_tokens=5000 training.max_steps=3 evaluation.final_sequences=4
  step "$arch" generate run --prompt "The " --max-new-tokens 8 --temperature 0
  [ -s log.txt ] || die "generate printed nothing"
  step "$arch" check "$mixer"
)

for pair in "${pairs[@]}"; do
  name=${pair%%=*} constraints=${pair#*=}
  environment=$PWD/.venv-release/$name-$(basename "$constraints" .txt)
  wanted=$(cat pyproject.toml "$constraints" | cksum)
  say "Trying the wheel on $("$(interpreter "$name")" --version), $constraints"
  if [ "$(cat "$environment/.installed" 2>/dev/null)" != "$wanted" ]; then
    "$(interpreter "$name")" -m venv --clear "$environment"
    "$environment/bin/python" -m pip install -q --disable-pip-version-check -c "$constraints" "$wheel"
    echo "$wanted" >"$environment/.installed"
  fi
  "$environment/bin/python" -m pip install -q --disable-pip-version-check --force-reinstall --no-deps "$wheel"
  "$environment/bin/python" -m pip check
  "$environment/bin/python" -c 'import sys, torch, transformers; print(f"  torch {torch.__version__}, transformers {transformers.__version__}")'
  try_wheel "$environment"
done
say "dist/ is ready: $(cd dist && echo *)"
