"""Runs a command at a terminal of 80 columns, and says what somebody would have seen there."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Seen:
    """What a command wrote.

    Args:
        status: Its exit status.
        writes: Each piece of text, with the seconds after the start at which it came.
        seconds: After which the command had ended.
    """

    status: int
    writes: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(text for _, text in self.writes)

    def states(self) -> list[str]:
        """Return each text that the current line had when the cursor left it or went back."""
        found, line, column = [], "", 0
        for character in self.text:
            if character == "\n":
                found.append(line.rstrip())
                line, column = "", 0
            elif character == "\r":
                found.append(line.rstrip())
                column = 0
            else:
                line = line[:column] + character + line[column + 1 :]
                column += 1
        return [*found, line.rstrip()]

    def screen(self) -> list[str]:
        """Return the lines that are left on the terminal."""
        lines = []
        for line in self.text.split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            lines.append(shown.rstrip())
        return lines


def at_terminal(
    command: list[str], folder: Path, env: dict[str, str], columns: int = 80, limit: float = 170
) -> Seen:
    """Run ``command`` in ``folder`` with a terminal of 24 lines for its three streams."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=child, stdout=child, stderr=child, close_fds=True
    )
    os.close(child)
    seen = Seen(0)
    try:
        while time.monotonic() - started < limit:
            try:
                data = os.read(parent, 65536)
            except OSError:  # nobody writes any more
                break
            if not data:
                break
            text = data.decode("utf-8", "replace").replace("\r\n", "\n")
            seen.writes.append((time.monotonic() - started, text))
        seen.status = process.wait(timeout=30)
    finally:
        process.kill()
        os.close(parent)
    seen.seconds = time.monotonic() - started
    return seen
