#!/usr/bin/env bash
# Learning rates of LoRA, full fine-tuning and prompt tuning: which is best for each?
#   bash examples/course/rates.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep rates --points examples/course/rates.yaml
