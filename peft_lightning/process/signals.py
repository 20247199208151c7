"""Signals that ask a run to stop: answered at once, or as soon as what has begun is whole."""

from __future__ import annotations

import os
import signal
import time

TYPE_CHECKING = False  # not typing's: nothing else is imported before signals are listened to
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
PATIENCE = 2.0  # seconds that a call outside Python may take before the process ends without it
ONE_KEY_PRESS = 0.1  # seconds; a program between the terminal and us may pass on a second SIGINT


class StopSignal(SystemExit):
    """A stop signal as an exception: raised by the handler, wherever the program is.

    Args:
        number: Of the signal.

    Attributes:
        code: The exit status, 128 plus the number as a shell reports it, unless SLURM is told.
        is_answered: Whether the user was told, and the status is final.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.is_answered = False


class StopRequest:
    """The first stop signal that this process was sent.

    The handler raises ``StopSignal`` in the main thread, within a forward pass as well as within
    an import. Where something has begun that must become whole, the signal is ``held``.

    Attributes:
        received: The number of the signal; None if there was none.
        kept: Says what is left of the work, for the line that a stopped command ends with.
        leave: Called in place of the main thread if that does not come back from a call outside
            Python; it takes the number and returns the exit status.
        is_owner: Whether this is the program of the process, and not a library in a notebook.
        has_state: Whether there is something to save first, so that the main thread must.
        failure: What training ended with before a signal could end it; None if it did not.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.kept: Callable[[], str] = lambda: ""
        self.leave: Callable[[int], int] = lambda number: 128 + number
        self.has_state = False
        self.failure: BaseException | None = None
        self._held = 0
        self._is_over = False
        self._is_answered = False
        self.is_owner = False
        self._texts: list[str | None] = []
        self._time = 0.0
        self._previous: dict[int, Any] = {}
        self._pid = 0

    # ---- listening ------------------------------------------------------------------------------

    def listen(self, *signals: int) -> list[int]:
        """Answer ``signals`` from now on, in this process and not in those that it forks.

        Returns:
            Those that were not listened to before. None outside the main thread, from which alone
            Python takes handlers.
        """
        import threading

        if threading.current_thread() is not threading.main_thread():
            return []
        if not self._previous:
            self._begin_anew()
        self._pid = os.getpid()
        new = [n for n in signals if n not in self._previous and not _is_survived(n)]
        for number in new:
            self._previous[number] = signal.signal(number, self._note)
        return new

    def own_process(self) -> None:
        """Listen to all stop signals as the program of this process, held until ``release``.

        A thread ends the process where the main one cannot: in a call that does not come back to
        Python for seconds, and after a second Ctrl-C.
        """
        self._pid, self.is_owner = os.getpid(), True
        self.hold()
        for number in STOP_SIGNALS:
            if not _is_survived(number):
                self._previous[number] = signal.signal(number, self._note)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        import threading

        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def forget(self, signals: list[int]) -> None:
        """Give those of ``signals`` that are listened to back to the handlers of before."""
        for number in [number for number in signals if number in self._previous]:
            signal.signal(number, self._previous.pop(number))
        if not self._previous:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self.received, self._is_over, self._is_answered = None, False, False
        self.failure = None

    def ignore(self) -> None:
        """Ignore what is listened to: the work is done.

        Python gives signals their defaults back while it shuts down, which takes a second with
        torch, and the default of most is to kill: a finished run would count as failed.
        """
        self._is_over = True
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def finish(self) -> None:
        """Let signals be without effect from now on: what they would stop is finished."""
        self._is_over = True

    @property
    def is_pending(self) -> bool:
        """Whether there was a signal that is to end the program."""
        return self.received is not None and not self._is_over

    def answer(self) -> None:
        """Leave the end of the process to the main thread, which has begun with it."""
        self._is_answered = True

    # ---- what must become whole -----------------------------------------------------------------

    def hold(self, text: str | None = None) -> None:
        """Only note a signal until ``release``.

        Args:
            text: What the user is told at once, if that may be long.
        """
        self._held += 1
        self._texts.append(text)

    def release(self, check: bool = True) -> None:
        """Undo one ``hold``; raise ``StopSignal`` if there was a signal and none is left.

        Args:
            check: False leaves it at that.
        """
        self._held -= 1
        self._texts.pop()
        if check:
            self.check()

    def held(self) -> Hold:
        """Return a context in which a signal is only noted; it is answered at the context's end."""
        return Hold(self)

    def check(self) -> None:
        """Raise ``StopSignal`` if there was a signal, also one that was caught on its way."""
        if self.is_pending and not self._held and not self._is_answered:
            assert self.received is not None
            raise StopSignal(self.received)

    # ---- the answer -----------------------------------------------------------------------------

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data loader's worker has inherited the handler
            return
        if self._is_over:
            return
        if self.received is not None:
            again = time.monotonic() - self._time > ONE_KEY_PRESS
            if number == signal.SIGINT and again and not self.is_owner:
                raise KeyboardInterrupt
            return
        self.received, self._time = number, time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()
        if self._held and (text := next((t for t in reversed(self._texts) if t), None)):
            line = f"{signal.Signals(number).name}: {text} (Ctrl-C again: at once, without saving)"
            os.write(2, (own_line() + line + "\n").encode())
        self.check()

    def _watch(self, reader: int) -> None:
        """End the process where the main thread does not; runs in a thread of its own."""
        import select

        first, start, told = 0, 0.0, 0.0
        while True:
            if select.select([reader], [], [], 0.25 if first else None)[0]:
                for number in os.read(reader, 64):
                    if number not in self._previous or self._is_over:
                        continue
                    now = time.monotonic()
                    if not first:
                        first, start = number, now
                    elif number == signal.SIGINT and now - told > ONE_KEY_PRESS:
                        os._exit(128 + signal.SIGINT)
                    told = now
            if self._is_over or self._is_answered:
                continue
            late = first and time.monotonic() - start > PATIENCE
            if late and not self._held and not self.has_state:
                self._is_answered = True
                os._exit(self.leave(first))


def _is_survived(number: int) -> bool:
    """Whether a signal is SIGHUP and ignored, as ``nohup`` has it."""
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


def _leave_terminal() -> None:
    """Let what is printed from now on go nowhere: writing to a closed terminal is an error."""
    import stat

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


def own_line() -> str:
    """Return what a message begins with: a new line where ``^C`` or progress may stand."""
    return "\n" if os.isatty(2) else ""


class Hold:
    """The context of ``StopRequest.held``."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        self._stop.hold()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._stop.release(check=error is None)


STOP = StopRequest()
