# Sourced by the exercises: sweep NAME [options] trains with three seeds and compares the runs, which
# are below runs/course, or below $RUNS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=python
if [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
given=("$@")
runs=${RUNS:-runs/course}

sweep() {
  local name=$1
  shift
  case " ${given[*]-} " in *" --seeds"*) ;; *) set -- --seeds 0,1,2 "$@" ;; esac
  "$python" -m peft_lightning sweep --config configs/quickstart.yaml --dir "$runs/$name" \
    "$@" ${given[@]+"${given[@]}"}
  case " ${given[*]-} " in *" --dry_run "* | *" --dry_run="*) return ;; esac
  "$python" -m peft_lightning compare "$runs/$name" --metrics json_match --forgetting
}
