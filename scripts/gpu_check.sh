#!/usr/bin/env bash
# The tests that need a GPU, and the speed of LoRA there beside HF PEFT's, in at most 10 minutes.
#
#   bash scripts/gpu_check.sh [--wheels DIR] [--write FILE]    see --help
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
  python=.venv/bin/python
fi
exec "$python" scripts/benchmarks/gpu_check.py "$@"
