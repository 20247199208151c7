#!/usr/bin/env bash
# Everything that has to pass: linter, formatter, types, tests.
#
#   bash scripts/test.sh [pytest options]
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh
install "[test]"
export TOKENIZERS_PARALLELISM=false

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
