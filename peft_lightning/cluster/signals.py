"""Signals that ask a run to stop: noted from its first moment on, before the heavy imports."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """The first stop signal that this process was sent.

    The handler notes it and does nothing else, wherever the program is: ``preemption`` asks for it
    between two optimizer steps. Only a second Ctrl-C is more than a note; it interrupts at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._pid = 0

    def listen(self, *signals: int) -> list[int]:
        """Note ``signals`` from now on, in this process and not in those that it forks.

        Returns:
            Those that were not listened to before. None outside the main thread, from which alone
            Python takes handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return []
        self._pid = os.getpid()
        new = [number for number in signals if number not in self._previous]
        for number in new:
            self._previous[number] = signal.signal(number, self._note)
        return new

    def forget(self, signals: list[int]) -> None:
        """Give ``signals`` back to the handlers that were there before."""
        for number in signals:
            signal.signal(number, self._previous.pop(number))
        if not self._previous:
            self.received = None

    def ignore(self) -> None:
        """Ignore what is listened to: the work is done.

        Python gives signals their defaults back while it shuts down, which takes a second with
        torch, and the default of most is to kill: a finished run would count as failed.
        """
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data loader's worker has inherited the handler
            return
        if self.received is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.received = number
        text = f"\n{signal.Signals(number).name}: stopping after this optimizer step"
        os.write(2, (text + " (Ctrl-C again: at once, without saving)\n").encode())


STOP = StopRequest()
