#!/usr/bin/env bash
# From nothing to a trained adapter: install, fetch SmolLM2-135M-Instruct, train, compare.
#
#   bash scripts/quickstart.sh [--again] [MODEL]
#
# MODEL is another base model: a hub id, a model's folder or a GGUF file. A second run reuses what
# is there: environment, model and the finished training (--again trains anew).
set -euo pipefail

again=false
model=
for argument in "$@"; do
  case $argument in
    --again) again=true ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;;
    -*) echo "error: there is no option $argument; there is --again" >&2; exit 2 ;;
    *) if [ -e "$argument" ]; then model=$(realpath "$argument"); else model=$argument; fi ;;
  esac
done
cd "$(dirname "$0")/.."

. scripts/environment.sh
install ""
python=.venv/bin/python
export HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false

started=$SECONDS
run=runs/quickstart
if [ -z "$model" ]; then
  model=$($python scripts/get_smollm2.py | tee >(cat >&2) | tail -n 1)
else
  run=runs/quickstart-$(basename "$model")
fi

phases=(--fetched $((SECONDS - started)))

if ! $again && grep -qs '"status": "finished"' "$run/summary.json"; then
  echo "trained already: $run/summary.json (--again trains anew)"
  phases=()
else
  $again && rm -rf "$run"
  resume=()
  if [ -d "$run/checkpoints/last.ckpt" ]; then
    echo "an unfinished training goes on: $run/checkpoints/last.ckpt (--again starts anew)"
    resume=(--ckpt_path last)
  fi
  $python -m peft_lightning fit --config configs/quickstart.yaml \
    --model.base_model "$model" --trainer.default_root_dir "$run" "${resume[@]}"
fi

$python scripts/quickstart_report.py "$model" "$run/checkpoints/best.ckpt" "${phases[@]}"

cat <<END

$((SECONDS - started)) s in all, without the installation.
  $run/checkpoints/best.ckpt   the adapter, as HF PEFT reads it
  $run/summary.json            sizes, speed, losses, versions
  $run/config.yaml             the whole configuration

What to try next, after: source .venv/bin/activate
  python -m peft_lightning generate --ckpt_path $run/checkpoints/best.ckpt --prompt "it's freezing in the den"
  python -m peft_lightning fit --config configs/quickstart.yaml --model.base_model "$model" --model.adapter.r 4
  python -m peft_lightning fit --help
END
