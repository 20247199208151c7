"""The short help of fit, validate, test and predict, read from a file: no import is needed."""

from __future__ import annotations

from pathlib import Path

PROG = "python -m peft_lightning"
FILE = Path(__file__).with_name("help.txt")  # written by scripts/write_help.py
COMMANDS_WITH_OPTIONS = ("fit", "predict")
ONLY = "{}|"  # begins a line that only one command has


def command_help(command: str, summary: str) -> str:
    """Return the help of a Trainer command: its options by group.

    Args:
        command: fit, validate, test or predict.
        summary: What it does, in one line.
    """
    lines = FILE.read_text("utf-8").splitlines()
    others = tuple(ONLY.format(name) for name in COMMANDS_WITH_OPTIONS if name != command)
    lines = [line for line in lines if not line.startswith(others)]
    text = "\n".join(line.removeprefix(ONLY.format(command)) for line in lines)
    return text.replace("{command}", command).replace("{summary}", summary)
