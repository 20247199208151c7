"""The short help of fit, validate, test and predict, read from a file: no import is needed."""

from __future__ import annotations

from pathlib import Path

PROG = "python -m peft_lightning"
FILE = Path(__file__).with_name("help.txt")  # written by scripts/write_help.py
PREDICT = "predict|"  # begins a line that only predict has


def command_help(command: str, summary: str) -> str:
    """Return the help of a Trainer command: its options by group.

    Args:
        command: fit, validate, test or predict.
        summary: What it does, in one line.
    """
    lines = FILE.read_text("utf-8").splitlines()
    if command != "predict":
        lines = [line for line in lines if not line.startswith(PREDICT)]
    text = "\n".join(line.removeprefix(PREDICT) for line in lines)
    return text.replace("{command}", command).replace("{summary}", summary)
