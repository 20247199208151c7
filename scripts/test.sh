#!/usr/bin/env bash
# Everything that has to pass: linter, formatter, types, tests.
#
#   bash scripts/test.sh [pytest options]
#   bash scripts/test.sh --fast [pytest options]   without tests that start processes or train
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/environment.sh
install "[test]"
export TOKENIZERS_PARALLELISM=false
# a worker for each core, each of one thread: threads of several processes would wait for each other
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-0}"

.venv/bin/ruff check .
.venv/bin/ruff format --check .
types=$(mktemp)
.venv/bin/mypy > "$types" 2>&1 &
mypy=$!
trap 'kill "$mypy" 2> /dev/null || true; rm -f "$types"' EXIT

status=0
# whole files, in the order of tests/long_files.py
.venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@" || status=$?
if ! wait "$mypy"; then
  cat "$types"
  exit 1
fi
exit "$status"
