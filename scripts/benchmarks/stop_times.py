"""Seconds from Ctrl-C to the end of the process, in each phase of the quick start's commands.

    python scripts/benchmarks/stop_times.py [--rounds 3]

Each phase is met in a process of its own. The last line is a JSON object: phase -> the longest.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

MODEL = "~/.cache/peft_lightning/models/SmolLM2-135M-Instruct"
ROOT = Path(__file__).parents[2]
LONG = "Tell me a long story of a lighthouse, a ship and a storm."
FIT = ["fit", "--config", "configs/quickstart.yaml", "--trainer.default_root_dir", "FOLDER"]
GENERATE = ["generate", "--prompt", LONG, "--max_new_tokens", "2000"]

# phase -> the command, the text on the terminal that is waited for, seconds after it
PHASES = {
    "imports": (FIT, "", 0.5),
    "imports of torch": (FIT, "", 1.5),
    "tokenizing": (FIT, "format prompt_completion", 0.0),
    "loading": (FIT, "kept", 0.5),
    "first step": (FIT, "threads", 0.5),
    "a later step": (FIT, "step 2/", 0.7),
    "validation": ([*FIT, "--trainer.val_check_interval", "1"], "validating", 1.0),
    "generation": (GENERATE, "", 9.0),
}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL, help="a model's folder or hub id")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for phase in PHASES:
            seconds, status, last = stop_in(phase, str(Path(options.model).expanduser()))
            found.setdefault(phase, []).append(seconds)
            print(f"{phase:18} {seconds:6.2f} s  status {status}  {last}", flush=True)
    print(json.dumps({phase: round(max(times), 2) for phase, times in found.items()}))


def stop_in(phase: str, model: str) -> tuple[float, int, str]:
    """Stop a command in a phase; return the seconds that it took, its status and last line."""
    words, text, delay = PHASES[phase]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "peft_lightning", *words]
        command = [folder if word == "FOLDER" else word for word in command]
        command += ["--base_model" if words is GENERATE else "--model.base_model", model]
        terminal, other = pty.openpty()
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=other, stderr=other, env={**os.environ, "COLUMNS": "160"}
        )
        os.close(other)
        shown = read(terminal, lambda shown: text in shown, process)
        shown += read(terminal, lambda _: False, process, delay)
        assert process.poll() is None, f"{phase} ended too early: {shown[-2000:]}"
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        shown += read(terminal, lambda _: False, process)
        seconds, status = time.monotonic() - start, process.wait()
        os.close(terminal)
    return seconds, status, shown.replace("\r", "\n").strip().splitlines()[-1]


def read(
    terminal: int,
    enough: Callable[[str], bool],
    process: subprocess.Popen[bytes],
    seconds: float = 600,
) -> str:
    """Return what is shown until it is enough, the seconds are over or the process has ended."""
    shown, deadline = "", time.monotonic() + seconds
    while not enough(shown) and (left := deadline - time.monotonic()) > 0:
        if select.select([terminal], [], [], min(left, 0.01))[0]:
            try:
                shown += os.read(terminal, 1 << 16).decode(errors="replace")
            except OSError:  # nobody is there any more
                break
        elif process.poll() is not None:
            break
    return shown


if __name__ == "__main__":
    main()
