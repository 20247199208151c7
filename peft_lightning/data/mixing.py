"""How many rows an epoch takes from each training source: by repeats, by shares, or by counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.batching import WeightedSource
from peft_lightning.messages import UserError, check_choice

MIX = ("auto", "repeat", "share", "rows")
STOPPING_STRATEGIES = ("all_exhausted", "first_exhausted")
MOST_REPEATS = 20  # above it, "auto" does not take a number for repeats: it may be rows or percent
ROUNDING = 0.002  # three shares of 0.333 sum to 1


@dataclass(frozen=True)
class Mixture:
    """What the numbers of the training sources say about an epoch.

    Args:
        kind: "repeat": a number is how often each row of its source occurs in an epoch; 0.5 takes a
            different half in each epoch. "share": numbers are the sources' proportions among the
            rows of an epoch. "rows": a number is how many rows an epoch takes from its source.
        numbers: One per source; empty if none was given, for one occurrence of each row.
        stopping_strategy: How long an epoch is with shares, in the terms of
            ``datasets.interleave_datasets``: "all_exhausted", the shortest one with every row at
            least once, or "first_exhausted", the longest one with no row twice.
        max_rows: Rows of each source that are trained on at all; None for all of them.
    """

    kind: str = "repeat"
    numbers: tuple[float, ...] = ()
    stopping_strategy: str = "all_exhausted"
    max_rows: int | None = None

    def limited(self, source: WeightedSource) -> WeightedSource:
        """Return a source with ``max_rows`` of its rows: a random choice that no seed changes.

        The rows of a smaller number are among those of a larger one.
        """
        if self.max_rows is None or source.num_records <= self.max_rows:
            return source
        of_rows = source.rows if source.records is None else source.records[source.rows]
        order = np.random.default_rng(0).permutation(np.unique(of_rows))
        return replace(source, rows=source.rows[np.isin(of_rows, order[: self.max_rows])])

    def weights(self, num_rows: Sequence[int]) -> list[float]:
        """Return how often each row of each source occurs in an epoch, for ``WeightedSource``.

        Args:
            num_rows: Rows of each source's files, at least one; not sequences of tokens, of which
                a row may become several.
        """
        numbers = self.numbers or (1.0,) * len(num_rows)
        if self.kind == "repeat":
            return list(numbers)
        counts = list(numbers)
        if self.kind == "share":
            shares = [number / sum(numbers) for number in numbers]
            epochs = [n / share for n, share in zip(num_rows, shares, strict=True)]
            rows = max(epochs) if self.stopping_strategy == "all_exhausted" else min(epochs)
            counts = [max(1, round(rows * share)) for share in shares]
        return [count / n for count, n in zip(counts, num_rows, strict=True)]

    def fingerprint(self, index: int) -> dict[str, Any]:
        """Return what determines the rows that an epoch takes from one source."""
        number = self.numbers[index] if self.numbers else 1.0
        mix = {"weight": number, "mix": self.kind}
        mix |= {"stopping_strategy": self.stopping_strategy} if self.kind == "share" else {}
        return mix | ({"max_train_rows": self.max_rows} if self.max_rows else {})


def read_mixture(
    train: Any,
    mix: str = "auto",
    stopping_strategy: str | None = None,
    max_rows: int | None = None,
) -> Mixture:
    """Return the mixture that the options of the training data describe.

    Args:
        train: One path, several, or a mapping of paths to numbers.
        mix: "repeat", "share", "rows", or "auto": "share" for several numbers that sum to 1,
            "repeat" for others, and an error where both or counts of rows may be meant.
        stopping_strategy: As for ``Mixture``; None for "all_exhausted".
        max_rows: As for ``Mixture``.

    Raises:
        UserError: If a number is none or not above 0, does not suit ``mix``, or is ambiguous.
    """
    check_choice("data.mix", mix, MIX)
    if stopping_strategy is not None:
        check_choice("data.stopping_strategy", stopping_strategy, STOPPING_STRATEGIES)
    if max_rows is not None and max_rows < 1:
        raise UserError(f"data.max_train_rows must be at least 1, got {max_rows}")
    if not isinstance(train, Mapping):
        if mix in ("share", "rows"):
            raise UserError(
                f"data.mix is {mix}, but data.train has no numbers; write them behind the paths:"
                " data.train: {a.jsonl: " + ("0.7, b.jsonl: 0.3}" if mix == "share" else "5000}")
            )
        kind, numbers = "repeat", tuple[float, ...]()
    else:
        numbers = tuple(_number(path, value) for path, value in train.items())
        kind = _kind(numbers) if mix == "auto" else mix
    if kind == "rows" and not all(number.is_integer() for number in numbers):
        raise UserError(f"data.mix is rows: data.train needs whole numbers of rows, got {train}")
    if kind == "share" and not _is_one(numbers) and not all(n.is_integer() for n in numbers):
        raise UserError(
            f"data.mix is share: the numbers of data.train must sum to 1 or be whole (7 and 3 are"
            f" 70 % and 30 %), got {train}, whose sum is {sum(numbers):g}"
        )
    if stopping_strategy is not None and kind != "share":
        raise UserError(
            f"data.stopping_strategy says how long an epoch is with shares, but data.mix is {kind};"
            " set data.mix to share, or leave data.stopping_strategy out"
        )
    return Mixture(kind, numbers, stopping_strategy or "all_exhausted", max_rows)


def _number(path: Any, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value <= 0:
        raise UserError(
            f"the number of a source of data.train must be above 0, got {path}: {value!r}"
        )
    return float(value)


def _is_one(numbers: Sequence[float]) -> bool:
    return math.isclose(sum(numbers), 1, abs_tol=ROUNDING)


def _kind(numbers: Sequence[float]) -> str:
    """Return what numbers mean where the user does not say it."""
    if len(numbers) > 1 and _is_one(numbers):
        return "share"
    given = ", ".join(f"{number:g}" for number in numbers)
    if max(numbers, default=1) > MOST_REPEATS:
        raise UserError(
            f"data.train gives its sources the numbers {given}: set data.mix to rows (rows an"
            " epoch), share (proportions) or repeat (how often each row occurs in an epoch)"
        )
    if len(numbers) > 1 and max(numbers) < 1:
        raise UserError(
            f"data.train gives its sources the numbers {given}, whose sum is {sum(numbers):g}:"
            " shares must sum to 1; set data.mix to repeat if each row is to occur that often"
        )
    return "repeat"


def epoch_table(
    names: Sequence[str], sources: Sequence[WeightedSource], loss_tokens: NDArray[np.int64]
) -> str:
    """Return a table of the rows that an epoch takes from each source.

    Args:
        names: The sources as the user wrote them.
        sources: Their rows to train on.
        loss_tokens: (all sequences,) Number of tokens in the loss of each.
    """
    taken = np.array([source.records_per_epoch for source in sources])
    sizes = np.array([source.num_records for source in sources])
    tokens = taken * [loss_tokens[source.rows].sum() for source in sources] / sizes
    rows = [["training source", "rows", "rows an epoch", "each", "share", "of loss tokens"]]
    for name, size, count, of_loss in zip(names, sizes, taken, tokens, strict=True):
        row = [name, f"{size:,}", f"{count:,}", f"{count / size:,.2f} x"]
        rows.append([*row, f"{count / taken.sum():.1%}", f"{of_loss / tokens.sum():.1%}"])
    if any(len(source.rows) > size for source, size in zip(sources, sizes, strict=True)):
        rows[0].append("sequences a row")
        for row, source, size in zip(rows[1:], sources, sizes, strict=True):
            row.append(f"{len(source.rows) / size:.2f}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
