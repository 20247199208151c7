"""The line of stderr on which a process shows how far it is; see ``progress.py``.

At a terminal the line is drawn anew each second, so that whoever waits sees a sign of life, and it
is taken away while anything else is written and when the work is done. Elsewhere (a file, a pipe)
it is a plain line at most every ``LINE_EVERY`` seconds. There is one such line at a time: that of
the work that was begun last.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from typing import Any

from peft_lightning.process.progress_format import fitted

LINE_EVERY = 10.0  # seconds between two lines where stderr is no terminal
DRAW_EVERY = 0.1  # seconds between two drawings at a terminal
FIRST_LINE = 3.0  # seconds after the start of the process before there is one
TICK = 1.0  # seconds after which a line is drawn anew, if only for its time
QUICK = 0.3  # seconds that work may take without being shown
STARTED = time.monotonic()
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # Lightning's order


class ProgressLine:
    """Draws the line of the work that was begun last; of the first process only."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._works: list[Any] = []
        self._process = os.getpid()
        self._stream: Any = None
        self._is_terminal = False
        self._drawn = 0  # columns of the line that is on the terminal
        self._open_line = False  # something else has written a line and not ended it
        self._drawn_at, self._line_at = float("-inf"), STARTED - LINE_EVERY + FIRST_LINE
        self._end = threading.Event()
        self._restore: list[Any] = []

    def begin(self, work: Any) -> None:
        if self._is_silent():
            return
        with self._lock:
            self._works.append(work)
            if len(self._works) > 1:
                return
            stream = sys.stderr
            self._stream = stream.stream if isinstance(stream, StreamBeside) else stream
            self._is_terminal = _is_terminal(self._stream)
            self._open_line = False
            if self._is_terminal:
                self._stand_beside()
            self._end = threading.Event()
            threading.Thread(target=self._tick, args=(self._end,), daemon=True).start()

    def end(self, work: Any) -> None:
        with self._lock:
            if self._process != os.getpid() or work not in self._works:
                return
            self._works.remove(work)
            if self._works:
                return
            self.clear()
            self._end.set()
            for undo in self._restore:
                undo()
            self._restore = []
            self._stream = None

    def refresh(self) -> None:
        """Draw the line if it is time to."""
        if not self._works or self._process != os.getpid():
            return
        now = time.monotonic()
        if not self._is_terminal:
            if now - self._line_at < LINE_EVERY:
                return
        elif now - self._drawn_at < DRAW_EVERY:
            return
        with self._lock:
            if self._works and now - self._works[-1].started >= QUICK and not _is_debugging():
                self._draw(now)

    def _draw(self, now: float) -> None:
        if self._open_line:
            return
        width = _columns(self._stream) - 1 if self._is_terminal else 100
        line = fitted(self._works[-1].parts(), width)
        try:
            if self._is_terminal:
                self._stream.write("\r" + line.ljust(min(width, self._drawn)))
                self._drawn, self._drawn_at = len(line), now
            else:
                self._stream.write(line + "\n")
                self._line_at = now
            self._stream.flush()
        except (OSError, ValueError):  # whoever read it has gone
            pass

    def clear(self) -> None:
        """Take the line away; the next drawing brings it back."""
        with self._lock:
            if self._drawn and self._stream is not None:
                width = min(self._drawn, _columns(self._stream) - 1)
                self._stream.write("\r" + " " * width + "\r")
                self._stream.flush()
            self._drawn = 0

    def wrote(self, text: str) -> None:
        """Take note of what else was written."""
        if text:
            self._open_line = not text.endswith("\n")
            self._drawn_at = float("-inf")

    def between(self) -> Any:
        """Return a context in which nothing is drawn."""
        return self._lock

    def is_showing(self) -> bool:
        """Whether a line may be on the terminal of this process."""
        return bool(self._works) and self._is_terminal and self._process == os.getpid()

    def _tick(self, end: threading.Event) -> None:
        wait = QUICK
        while not end.wait(wait):
            with self._lock:
                if not end.is_set() and self._works:
                    idle = time.monotonic() - self._drawn_at
                    if not self._is_terminal or idle > TICK / 2:
                        self.refresh()
            wait = TICK

    def _stand_beside(self) -> None:
        """Let what else is written to the terminal make room for the line first."""
        raw = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        for name, stream in raw.items():
            if isinstance(stream, StreamBeside) or stream is None:
                continue
            beside = StreamBeside(stream)
            setattr(sys, name, beside)
            self._restore.append(lambda n=name, b=beside, s=stream: _put_back(n, b, s))
            for handler in _handlers():
                if handler.stream is stream:
                    handler.stream = beside
                    self._restore.append(lambda h=handler, s=stream: setattr(h, "stream", s))

    def _is_silent(self) -> bool:
        if self._process != os.getpid():  # forked: the parent draws
            return True
        return rank() != 0 or sys.stderr is None


def rank() -> int:
    """Return the number of this process among those of a run, as its launcher says it."""
    found = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    return int(found) if found.isdigit() else 0


class StreamBeside:
    """A stream whose text never lands in the line that shows the progress."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write ``text`` where the line was."""
        if not DISPLAY.is_showing():
            return int(self.stream.write(text))
        with DISPLAY.between():
            DISPLAY.clear()
            written = self.stream.write(text)
            self.stream.flush()
            DISPLAY.wrote(text)
        return int(written)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _put_back(name: str, beside: StreamBeside, stream: Any) -> None:
    if getattr(sys, name) is beside:
        setattr(sys, name, stream)


def _handlers() -> list[Any]:
    """Return the handlers of all loggers that write to a stream."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = [h for logger in loggers for h in getattr(logger, "handlers", [])]
    return [handler for handler in found if isinstance(handler, logging.StreamHandler)]


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _is_debugging() -> bool:
    """Whether the main thread waits for a command in pdb, whose prompt a line would cover."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return frame is not None and frame.f_code.co_filename.endswith(("/cmd.py", "/pdb.py"))


def _columns(stream: Any) -> int:
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        columns = 0
    return columns or shutil.get_terminal_size().columns


DISPLAY = ProgressLine()
