#!/usr/bin/env bash
# Attention alone, MLP alone and all linear layers, with equally many parameters.
#   bash examples/course/targets.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep targets --points examples/course/targets.yaml
