#!/usr/bin/env bash
# From 10 rows to all: how much data does an adapter need?
#   bash examples/course/low_data.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep low_data --vary data.max_train_rows=10,30,100,300,420 --trainer.max_epochs -1 --trainer.max_steps 54
