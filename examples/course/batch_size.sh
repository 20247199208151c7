#!/usr/bin/env bash
# Batches of 4, 16 and 64 rows: what do they cost LoRA and full fine-tuning?
#   bash examples/course/batch_size.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep batch_size --points examples/course/batch_size.yaml
