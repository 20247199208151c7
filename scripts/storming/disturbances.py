"""How the storm disturbs a running command, and what it may do then."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM
from typing import Any

from storming.operations import LONGEST, Operation, output, start

SIGNALS = {"KILL": [SIGKILL], "TERM": [SIGTERM], "INT": [SIGINT], "HUP": [SIGHUP]}
MOUNTED = ("full", "read-only")
KINDS = (*SIGNALS, "two", *MOUNTED)
PAIRS = [(SIGTERM, SIGINT), (SIGINT, SIGINT), (SIGTERM, SIGTERM), (SIGTERM, SIGKILL)]
SIZE = 16 * 2**20  # bytes of the disk of a try
SLOWEST = 30.0  # seconds from a signal to the end, on a machine that is busy


@contextlib.contextmanager
def mounted(folder: Path, is_own_disk: bool) -> Iterator[None]:
    """Make a folder, on a small disk of its own where that is asked for."""
    folder.mkdir()
    if not is_own_disk:
        yield
        return
    mount(folder, f"size={SIZE}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def mount(folder: Path, options: str) -> bool:
    """Mount a tmpfs, or mount it with other options; whether that could be."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def disturbed(
    operation: Operation,
    folder: Path,
    kind: str,
    draw: random.Random,
    seconds: float,
    is_first: bool,
) -> list[str]:
    """Run an operation and disturb it; return what is wrong with how it ended.

    Args:
        operation: The operation.
        folder: Where it runs.
        kind: One of ``KINDS``.
        draw: Of the moments.
        seconds: That an undisturbed run takes.
        is_first: Whether nothing has begun yet.
    """
    output(folder)
    filler = folder / "filler"
    if kind == "full":
        state = os.statvfs(folder)
        left = state.f_bavail * state.f_bsize
        with filler.open("wb") as file:  # all but a few kilobytes
            file.write(bytes(max(0, left - draw.randrange(400 * 1024))))
    lines = operation.lines if is_first else operation.again
    programs = [start(line, folder) for line in lines]
    moment = draw.random() ** 1.5 * seconds * 1.1  # the start is more often hit than the end
    victims = programs if draw.random() < 0.5 else [draw.choice(programs)]
    pair = draw.choice(PAIRS)
    pause = draw.random() * 0.3
    if kind in SIGNALS or kind == "two":
        time.sleep(moment)
        sent = [SIGNALS[kind][0]] if kind in SIGNALS else list(pair)
        for number, signal in enumerate(sent):
            time.sleep(pause * (number > 0))
            for program in victims:
                program.send_signal(signal)
    elif kind == "read-only":
        time.sleep(moment)
        while not mount(folder, "remount,ro") and any(p.poll() is None for p in programs):
            time.sleep(0.01)  # while a file is open to write
    faults = [text for program in programs for text in _end(program, kind, program in victims)]
    if kind == "read-only":
        mount(folder, "remount,rw")
    filler.unlink(missing_ok=True)
    (folder / "begun").touch()
    said = output(folder)
    if "Traceback" in said:
        faults.append("a traceback: " + " | ".join(said.strip().splitlines()[-2:])[-400:])
    return faults


def _end(program: Any, kind: str, is_victim: bool) -> list[str]:
    """Wait for a program; return what is wrong with its end."""
    limit = SLOWEST if is_victim and kind not in MOUNTED else LONGEST
    try:
        status = program.wait(limit)
    except subprocess.TimeoutExpired:
        program.kill()
        return [f"it does not end within {limit:.0f} s"]
    allowed = {0, 2, 1} if kind in MOUNTED else {0, -9, 128 + 15, 130, 128 + 1}
    # a signal before Python has started has the system's answer
    allowed |= set() if kind in MOUNTED else {-SIGTERM, -SIGINT, -SIGHUP}
    if status not in allowed and is_victim:
        return [f"it ends with status {status}"]
    return []
