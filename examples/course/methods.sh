#!/usr/bin/env bash
# LoRA, full fine-tuning and prompt tuning, each at its best learning rate.
#   bash examples/course/methods.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep methods --points examples/course/methods.yaml
