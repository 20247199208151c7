#!/usr/bin/env bash
# How a soft prompt starts: random, words of the vocabulary, a text.
#   bash examples/course/inits.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep inits --points examples/course/inits.yaml
