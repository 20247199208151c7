#!/usr/bin/env bash
# OLoRA and PiSSA against the usual start of LoRA.
#   bash examples/course/olora.sh [options of sweep and fit]
. "$(dirname "$0")/start.sh"
sweep olora --vary model.adapter.init_lora_weights=true,olora,pissa
