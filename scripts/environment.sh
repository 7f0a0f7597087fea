# Sourced by quickstart.sh, test.sh and test_versions.sh: enters the repository and makes sure `.venv` holds the package.
# Usage: source scripts/environment.sh; prepare_environment [extra] [environment folder] [constraints file]

cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\n== %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# prepare_environment [extra] [environment] [constraints]: an editable install, skipped while pyproject.toml and the
# constraints stay as they were.
prepare_environment() {
  local extra=${1:-} venv=${2:-.venv} constraints=${3:-constraints.txt} target=. python=${PYTHON:-python3} wanted stamp
  if [ -n "$extra" ]; then target=".[$extra]"; fi
  wanted=$(cat pyproject.toml "$constraints" <(pwd) | cksum)
  for stamp in "$venv/.installed-${extra:-core}" "$venv/.installed-dev"; do
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$venv/bin/python" -c '' 2>/dev/null; then return; fi
  done

  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      die "hf_arch needs Python 3.11 or newer; '$python' is not. Name another one with PYTHON=/path/to/python3.11"
    say "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || die "'$python -m venv' failed (on Debian and Ubuntu: apt install python3-venv)"
  fi
  say "Installing hf-arch${extra:+ with its '$extra' extra} into $venv (a minute or so, mostly PyTorch; several on a slow network, without a word)"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check -c "$constraints" -e "$target"
  echo "$wanted" >"$venv/.installed-${extra:-core}"
}
