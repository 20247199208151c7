"""One point of a sweep in a process of its own, with its output in a file."""

from __future__ import annotations

import ctypes
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
LAST_BYTES = 8192  # of a log, within which its last line is


class Program(Protocol):
    """A running program, as ``subprocess.Popen`` is."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...


Start = Callable[..., Program]


def start_python(args: list[str], *, env: dict[str, str], stdout: Any, stderr: Any) -> Program:
    """Start ``python`` with ``args``; it is told to stop if this process dies.

    It has a session of its own, so that Ctrl-C at the terminal comes to this process alone.
    """
    return subprocess.Popen(
        [sys.executable, *args],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    with suppress(AttributeError):  # not Linux
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class PointProcess:
    """A ``fit`` that runs.

    Args:
        args: Of python.
        log: The file that its output is added to.
        env: Its environment.
        columns: The width of its line of progress, which is kept out of the log; 0 for the plain
            lines that it writes to a file.
        start: Starts python.

    Attributes:
        line: The newest of its lines of progress.
    """

    def __init__(
        self,
        args: list[str],
        log: Path,
        env: dict[str, str],
        columns: int = 0,
        start: Start = start_python,
    ) -> None:
        self.line, self.log, self.started = "", log, time.monotonic()
        self._reader: threading.Thread | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            if not columns:
                self._program = start(args, env=env, stdout=file, stderr=file)
                return
            ours, theirs = pty.openpty()
            termios.tcsetwinsize(theirs, (24, columns))
            with open(theirs, "wb", buffering=0) as terminal:
                self._program = start(args, env=env, stdout=file, stderr=terminal)
        self._reader = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """Return the exit status, -n after the signal n; None while it runs."""
        status = self._program.poll()
        if status is not None and self._reader is not None:
            self._reader.join(timeout=5)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        self._program.send_signal(number)

    def error(self) -> str:
        """Return the last line of what this start has written."""
        return last_line(self.log, self.log_start)

    def _read(self, terminal: int) -> None:
        """Take the line of progress out of what it writes to its terminal; the rest is logged."""
        waiting = b""
        with open(terminal, "rb", buffering=0) as stream, self.log.open("ab") as file:
            with suppress(OSError):  # EIO: nobody has the other end open
                while data := stream.read(4096):
                    *lines, waiting = re.split(rb"\r\n|\n", waiting + data)
                    for line in lines:
                        file.write(_after_progress(line) + b"\n")
                        file.flush()
                    if shown := waiting.rpartition(b"\r")[2].strip():
                        self.line = shown.decode("utf-8", errors="replace")
                    if len(waiting) > LAST_BYTES:
                        waiting = waiting.rpartition(b"\r")[2]
            if rest := _after_progress(waiting).strip():
                file.write(rest + b"\n")


def _after_progress(line: bytes) -> bytes:
    """Return what stands on a line at last, after the progress that it was written over."""
    return line.rpartition(b"\r")[2]


def last_line(log: Path, start: int = 0) -> str:
    """Return the last line of a log that is not empty; that of an error, if there is one.

    Args:
        log: The file.
        start: Byte from which on it is read.
    """
    with suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(start, file.tell() - LAST_BYTES))
        lines = [text.strip() for text in file.read().decode(errors="replace").splitlines()]
        errors = [line for line in lines if line.startswith("error: ")]
        return next(reversed(errors or [line for line in lines if line]), "")
    return ""


def describe_exit(status: int) -> str:
    """Return how a program has ended that says nothing itself."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"exit status {status}"
