"""Words for scores, differences and lists of groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peft_lightning.reports.comparison import Estimate

MOST_NAMED = 4


@dataclass(frozen=True)
class Measure:
    """A score, as sentences call it.

    Args:
        name: Such as "loss".
        unit: Such as "nats per token"; "points" of a share, which is shown in percent.
        lower_is_better: Whether small values are good.
    """

    name: str
    unit: str
    lower_is_better: bool = True

    @property
    def is_share(self) -> bool:
        """Whether its values are between 0 and 1, shown in percent."""
        return self.unit == "points"

    def value(self, number: float) -> str:
        """Return a value for a reader, without its unit."""
        return f"{number * 100:.1f} %" if self.is_share else f"{number:.4g}"

    def with_unit(self, number: float) -> str:
        """Return a value with its unit."""
        return self.value(number) if self.is_share else f"{self.value(number)} {self.unit}"

    def size(self, number: float) -> str:
        """Return the size of a difference, with its unit."""
        if self.is_share:
            return f"{abs(number) * 100:.1f} points"
        return f"{abs(number):.2g} {self.unit}"

    def span(self, sizes: Sequence[float]) -> str:
        """Return the smallest and the largest of the sizes of differences."""
        low, high = (self.size(size) for size in (min(sizes), max(sizes)))
        return high if low == high else f"{low.split()[0]} to {high}"

    def interval(self, estimate: Estimate) -> str:
        """Return the 95 % interval of the size of a difference, without its unit."""
        low, high = sorted((estimate.low, estimate.high))
        if estimate.value < 0:
            low, high = -high, -low
        scale = 100 if self.is_share else 1
        width = (high - low) * scale
        digits = max(0, min(6, 1 - math.floor(math.log10(width)))) if width > 0 else 3
        return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"

    def perplexity(self, difference: float) -> str:
        """Return what a difference of losses is for the perplexity; "" of another score."""
        if self.unit != LOSS.unit or abs(difference) > 1:
            return ""
        return f"; perplexity {100 * math.expm1(abs(difference)):.1f} % higher"

    def goodness(self, number: float) -> float:
        """Return a number that is higher where the score is better."""
        return -number if self.lower_is_better else number


LOSS = Measure("loss", "nats per token")


def listed(names: Sequence[str]) -> str:
    """Return names as part of a sentence, the first ones of many."""
    shown = list(names if len(names) <= MOST_NAMED + 1 else names[:MOST_NAMED])
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} others")
    between = "; " if any("," in name for name in shown) else ", "
    return shown[0] if len(shown) == 1 else f"{between.join(shown[:-1])} and {shown[-1]}"


def who(names: Sequence[str], everybody: Sequence[str]) -> str:
    """Return names, or that they are all."""
    if len(names) == len(everybody) > 1:
        return "Both" if len(names) == 2 else f"All {len(names)}"
    return listed(names)


def are(names: Sequence[str]) -> str:
    """Return is or are."""
    return "is" if len(names) == 1 else "are"
