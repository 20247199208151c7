"""Trains one epoch in float64 on two processes, and saves the final weights.

Usage: python exact_driver.py BASE ROWS ROOT OUT, options of ``fit`` as JSON in EXACT_OPTIONS.
Lightning starts the second process by running this file again.
"""

import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file

from exactness import train

if __name__ == "__main__":
    base, rows, root, out = map(Path, sys.argv[1:])
    trainer, weights = train(base, rows, root, **json.loads(os.environ["EXACT_OPTIONS"]))
    if trainer.is_global_zero:
        save_file(weights, out)
