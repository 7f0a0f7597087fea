#!/usr/bin/env bash
# Build the site (pages of docs/, API from docstrings, search) into build/site; any broken link or docstring fails.
# Usage: bash scripts/docs.sh [serve]      `serve` shows it on this machine and follows changes of the built pages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted=$(cksum <pyproject.toml)
if [ "$(cat .venv-docs/.installed 2>/dev/null)" != "$wanted" ]; then
  # The tools of the extra `docs` alone: the package itself, and so torch, is not needed to read its docstrings.
  "${PYTHON:-python3}" -m venv --clear .venv-docs
  .venv-docs/bin/python - >.venv-docs/requirements.txt <<'EOF_PYTHON'
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
EOF_PYTHON
  .venv-docs/bin/python -m pip install -q --disable-pip-version-check -r .venv-docs/requirements.txt
  echo "$wanted" >.venv-docs/.installed
fi
mkdir -p build
.venv-docs/bin/python tools/site.py build
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = serve ]; then exec .venv-docs/bin/mkdocs serve --config-file build/mkdocs.yml; fi
.venv-docs/bin/mkdocs build -q --strict --config-file build/mkdocs.yml
echo "build/site: $(find build/site -name '*.html' | wc -l) pages"
