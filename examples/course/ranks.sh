#!/usr/bin/env bash
# Ranks 1 to 64: what does a larger rank learn, and what does it cost?
#   bash examples/course/ranks.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep ranks --vary model.adapter.r,model.adapter.lora_alpha=1:2,2:4,4:8,8:16,16:32,32:64,64:128
