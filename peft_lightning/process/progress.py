"""How far a long piece of work is, and how long its kinds of work have taken."""

from __future__ import annotations

import time

from peft_lightning.process.progress_format import bar, clock, number
from peft_lightning.process.progress_line import DISPLAY, STARTED

_SPENT: dict[str, float] = {}


class Progress:
    """A piece of work; a context manager, shown from its beginning to its end.

    Args:
        what: Such as "tokenizing train.jsonl".
        total: How much there is to do; None if that is not known.
        unit: Of ``total``, such as "rows".
    """

    def __init__(self, what: str, total: float | None = None, unit: str = "") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done: float = 0
        self.started = time.monotonic()
        self.is_over = False

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        DISPLAY.begin(self)
        return self

    def __exit__(self, *args: object) -> None:
        if not self.is_over:
            kind = self.what.split()[0]
            _SPENT[kind] = _SPENT.get(kind, 0.0) + time.monotonic() - self.started
        self.is_over = True
        DISPLAY.end(self)

    def update(self, done: float, total: float | None = None) -> None:
        """Say how much is done, and how much there is if that has changed."""
        self.done = done
        self.total = self.total if total is None else total
        DISPLAY.refresh()

    def parts(self) -> list[tuple[int, str]]:
        """Return the parts of the line from left to right, with how dispensable each is.

        Where the line is too narrow, those of the highest number are left out first.
        """
        seconds = time.monotonic() - self.started
        parts = [(0, self.what)]
        if not self.total:
            count = f"{number(self.done)} {self.unit}".rstrip()
            return [*parts, *([(1, count)] if self.done else []), (2, clock(seconds))]
        share = min(1.0, self.done / self.total)
        amount = f"{number(self.done)} of {number(self.total)} {self.unit}".rstrip()
        parts += [(3, bar(share)), (1, amount)]
        if self.done and seconds > 1:
            left = seconds / self.done * max(0, self.total - self.done)
            return [*parts, (2, f"{clock(left)} left")]
        return [*parts, (2, clock(seconds))]


STARTING = Progress("starting")  # from the first import until a run has begun its work


def seconds_spent(kind: str) -> float:
    """Return the seconds that work of a kind, the first word of its name, has taken so far."""
    return _SPENT.get(kind, 0.0)


def seconds_since_start() -> float:
    """Return the seconds since this process imported its first module of ours."""
    return time.monotonic() - STARTED
