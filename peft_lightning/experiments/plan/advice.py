"""What to change so that a run fits a given memory, the cheapest change first."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from peft_lightning.messages import UserError

UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class Change:
    """A change of a run's options.

    Args:
        kind: What is changed; a set has one change of a kind.
        options: To paste behind ``fit``.
        effect: What it does, in words.
        loss: What it costs in quality, as a share of the time that one would give for it; 0 if
            the run computes the same.
        divide: Into how many batches each batch is divided.
        max_tokens: Most tokens of a row; None where rows stay whole.
        set_to: Fields of ``StepOptions``.
        slower: The factor on the time, beside what follows from the arithmetic.
    """

    kind: str
    options: tuple[str, ...]
    effect: str
    loss: float = 0.0
    divide: int = 1
    max_tokens: int | None = None
    set_to: tuple[tuple[str, object], ...] = ()
    slower: float = 1.0


@dataclass(frozen=True)
class Variant:
    """A set of changes and what the run then needs.

    Args:
        changes: The changes; none for the run as it is.
        peak_bytes: Memory.
        seconds: Time of the whole run.
        is_measured: Whether both come from steps that were run.
    """

    changes: tuple[Change, ...]
    peak_bytes: float
    seconds: float
    is_measured: bool = False

    @property
    def options(self) -> list[str]:
        """What to paste behind ``fit``."""
        return [option for change in self.changes for option in change.options]

    def cost(self) -> float:
        """Return the time, and what the loss of quality is worth in time."""
        return self.seconds * (1 + sum(change.loss for change in self.changes))


@dataclass(frozen=True)
class Advice:
    """What makes a run fit.

    Args:
        limit: Bytes of memory.
        now: The run as it is.
        single: Each change alone, the cheapest first; of those that have degrees the mildest that
            fits, else the strongest.
        best: The cheapest set that fits; None if none does.
        smallest: The set that needs least.
    """

    limit: int
    now: Variant
    single: list[Variant]
    best: Variant | None
    smallest: Variant


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as 8GiB, 512MiB or 24G.

    Raises:
        UserError: If it is none.
    """
    found = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?b)?\s*", str(text), re.IGNORECASE)
    try:
        size = float(found[1]) * UNITS[found[2].lower()] if found else 0.0
    except ValueError:
        size = 0.0
    if size < 2**20:
        raise UserError(f"--fit_memory {text}: write a size such as 8GiB, 24GiB or 900MiB")
    return int(size)


def advise(
    limit: int,
    changes: Sequence[Change],
    predict: Callable[[tuple[Change, ...]], Variant],
    check: Callable[[Variant], Variant] | None = None,
    tries: int = 3,
) -> Advice:
    """Return the cheapest sets of changes with which a run fits.

    Args:
        limit: Bytes of memory.
        changes: All changes that could be made.
        predict: Returns what the run needs with some of them.
        check: Measures a variant, if that can be done.
        tries: How many sets to measure at most.
    """
    now = predict(())
    kinds = list(dict.fromkeys(change.kind for change in changes))
    by_kind = [[c for c in changes if c.kind == kind] for kind in kinds]
    every = [predict(_chosen(picks)) for picks in itertools.product(*([None, *c] for c in by_kind))]
    every.sort(key=lambda v: (v.cost(), len(v.changes), v.peak_bytes))
    smallest = min(every, key=lambda v: (v.peak_bytes, v.cost()))
    single = [_mildest([predict((c,)) for c in of_kind], limit) for of_kind in by_kind]
    single.sort(key=Variant.cost)
    best = next((v for v in every if v.peak_bytes <= limit), None)
    if check is not None and best is not None:
        best, smallest = _checked(every, best, smallest, limit, check, tries)
    return Advice(limit, now, single, best, smallest)


def _chosen(picks: Iterable[Change | None]) -> tuple[Change, ...]:
    return tuple(pick for pick in picks if pick is not None)


def _mildest(variants: list[Variant], limit: int) -> Variant:
    """Return the cheapest of the degrees of one change that fits, else the smallest."""
    fitting = [v for v in variants if v.peak_bytes <= limit]
    if fitting:
        return min(fitting, key=Variant.cost)
    return min(variants, key=lambda v: v.peak_bytes)


def _checked(
    every: list[Variant],
    best: Variant,
    smallest: Variant,
    limit: int,
    check: Callable[[Variant], Variant],
    tries: int,
) -> tuple[Variant | None, Variant]:
    """Measure the cheapest set; while it does not fit, one that is predicted that much smaller."""
    tight = 1.0
    for _ in range(tries):
        measured = check(best) if best.changes else best
        if measured.peak_bytes <= limit:
            return measured, smallest
        if best is smallest:
            return None, measured
        tight = max(tight, measured.peak_bytes / best.peak_bytes) * 1.01
        fitting = (v for v in every if v.peak_bytes * tight <= limit and v != best)
        best = next(fitting, smallest)
    return None, replace(smallest, peak_bytes=smallest.peak_bytes * tight)
