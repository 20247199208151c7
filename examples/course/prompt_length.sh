#!/usr/bin/env bash
# Soft prompts of 8, 16 and 32 vectors.
#   bash examples/course/prompt_length.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep prompt_length --points examples/course/prompt_length.yaml
