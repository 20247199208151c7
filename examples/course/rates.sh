#!/usr/bin/env bash
# The best learning rate of LoRA against that of full fine-tuning.
#   bash examples/course/rates.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep rates --points examples/course/rates.yaml
