"""What follows from a comparison, in plain sentences: what is beyond noise and what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from peft_lightning.experiments.statistics import Statistics
from peft_lightning.reports.comparison import Estimate

FEW_ROWS = 30  # below, the mean over rows is far from normal
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

    def value(self, number: float, digits: int = 4) -> str:
        """Return a value for a reader."""
        if self.is_share:
            return f"{number * 100:.1f} %"
        return f"{number:.{digits}g}"

    def size(self, number: float) -> str:
        """Return the size of a difference, with its unit."""
        if self.is_share:
            return f"{abs(number) * 100:.1f} points"
        return f"{abs(number):.2g} {self.unit}"

    def interval(self, estimate: Estimate) -> str:
        """Return the 95 % interval of the size of a difference, without its unit."""
        low, high = sorted((estimate.low, estimate.high))
        if estimate.value < 0:
            low, high = -high, -low
        scale = 100 if self.is_share else 1
        digits = _digits(high * scale - low * scale)
        return f"{low * scale:.{digits}f} to {high * scale:.{digits}f}"

    def goodness(self, number: float) -> float:
        """Return a number that is higher where the score is better."""
        return -number if self.lower_is_better else number


LOSS = Measure("loss", "nats per token")


def conclusions(
    found: Statistics,
    base: str,
    parameters: Mapping[str, float | None],
    measure: Measure = LOSS,
) -> list[str]:
    """Return what follows from the statistics of a score, the most important sentence first.

    Args:
        found: The groups compared.
        base: The name of the untouched base among them.
        parameters: The trainable parameters of each group, where known.
        measure: What is compared.
    """
    groups = [name for name in found.means if name != base]
    if not groups:
        return []
    ranked = sorted(groups, key=lambda g: -measure.goodness(found.means[g].value))
    sentences = [_best(found, ranked, measure)]
    if len(ranked) > 1:
        sentences += _cheapest(found, ranked, parameters)
    sentences.append(_against_base(found, ranked, base, measure))
    return sentences


def noise(found: Statistics, seeds: Mapping[str, int], measure: Measure = LOSS) -> list[str]:
    """Return what is known of the noise: the spread of seeds, and the number of rows.

    Args:
        found: The groups compared.
        seeds: The number of different seeds of each group that has seeds.
        measure: What is compared.
    """
    sentences = []
    several = [name for name, number in seeds.items() if number > 1]
    if not several:
        which = "One seed each" if len(seeds) > 1 else "One seed"
        sentences.append(
            f"{which}: differences between runs may be chance of the seed, which the intervals do "
            "not contain; run --seeds 0,1,2 to know."
        )
    elif found.pooled_spread is not None:
        numbers = sorted({seeds[name] for name in several})
        many = "to".join(f" {n} " for n in (numbers[0], numbers[-1])[: len(numbers)]).strip()
        sentences.append(
            f"Noise floor: the same options with another seed change the {measure.name} by "
            f"{measure.size(found.pooled_spread)} (standard deviation; {many} seeds a group)."
        )
        if alone := [name for name, number in seeds.items() if number == 1]:
            sentences.append(
                f"{_listed(alone)} {_have(alone)} one seed only; the spread of the others is taken "
                f"for {'it' if len(alone) == 1 else 'them'}."
            )
    if found.rows < FEW_ROWS:
        sentences.append(f"Only {found.rows} rows were evaluated, so the intervals are rough.")
    return sentences


def _best(found: Statistics, ranked: Sequence[str], measure: Measure) -> str:
    best, others = ranked[0], ranked[1:]
    word = "lowest" if measure.lower_is_better else "highest"
    value = measure.value(found.means[best].value)
    unit = "" if measure.is_share else f" {measure.unit}"
    if not others:
        return f"{best} has {_a(measure.name)} {measure.name} of {value}{unit}."
    beaten = [o for o in others if found.differences[best, o].is_beyond_noise]
    alike = [o for o in others if o not in beaten]
    next_best = found.differences[others[0], best]
    if not alike:
        return (
            f"{best} is best, beyond noise: {measure.name} {value}{unit}; the next, {others[0]}, "
            f"is worse by {measure.size(next_best.value)} (95 % interval "
            f"{measure.interval(next_best)}{_perplexity(next_best.value, measure)})."
        )
    if not beaten and len({found.means[name].value for name in ranked}) == 1:
        return f"All {len(ranked)} groups have the same {measure.name}, {value}{unit}."
    if not beaten:
        return (
            f"No difference between {_count(len(ranked))} is beyond noise. The {word} "
            f"{measure.name}, {value}{unit}, is that of {best}; the others are within "
            f"{measure.size(_widest(found, best, alike))} of it."
        )
    worst = max(beaten, key=lambda o: abs(found.differences[o, best].value))
    least = min(beaten, key=lambda o: abs(found.differences[o, best].value))
    span = measure.size(found.differences[worst, best].value)
    if least != worst:
        span = f"{_number(found.differences[least, best].value, measure)} to {span}"
    return (
        f"{best} has the {word} {measure.name}, {value}{unit}, but cannot be told apart from "
        f"{_listed(alike)}: the difference is within noise. {_listed(beaten)} "
        f"{_are(beaten)} worse, beyond noise, by {span}."
    )


def _cheapest(
    found: Statistics, ranked: Sequence[str], parameters: Mapping[str, float | None]
) -> list[str]:
    """Return which of the equally good groups trains the fewest parameters."""
    best = ranked[0]
    alike = [g for g in ranked[1:] if not found.differences[best, g].is_beyond_noise]
    known = {g: n for g in [best, *alike] if (n := parameters.get(g)) is not None}
    if not alike or best not in known:
        return []
    least = min(known, key=lambda g: known[g])
    if least == best:
        return [f"Of these, {best} also has the fewest trainable parameters, {known[best]:,.0f}."]
    if known[least] == known[best]:
        return []
    return [
        f"Of these, {least} has the fewest trainable parameters: {known[least]:,.0f}, where {best} "
        f"has {known[best]:,.0f}."
    ]


def _against_base(found: Statistics, ranked: Sequence[str], base: str, measure: Measure) -> str:
    of_base = f"the untouched base ({measure.value(found.means[base].value)})"
    gains = {g: found.differences[g, base] for g in ranked}
    better = [
        g for g in ranked if gains[g].is_beyond_noise and measure.goodness(gains[g].value) > 0
    ]
    worse = [g for g in ranked if gains[g].is_beyond_noise and g not in better]
    unclear = [g for g in ranked if g not in better and g not in worse]
    parts = []
    if better:
        sizes = sorted(abs(gains[g].value) for g in better)
        span = measure.size(sizes[-1])
        if measure.size(sizes[0]) != span:
            span = f"{_number(sizes[0], measure)} to {span}"
        who = _who(better, ranked)
        parts.append(f"{who} {_are(better)} better than {of_base}, beyond noise, by {span}")
    if worse:
        than = "it" if better else of_base
        parts.append(f"{_who(worse, ranked)} {_are(worse)} worse than {than}, beyond noise")
    if unclear:
        than = "it" if parts else of_base
        if len(unclear) == len(ranked) > 1:
            who = "Neither" if len(ranked) == 2 else f"None of the {len(ranked)}"
            parts.append(f"{who} can be told apart from {than}")
        else:
            parts.append(f"{_listed(unclear)} cannot be told apart from {than}")
    return f"{'; '.join(parts)}."


def _widest(found: Statistics, best: str, others: Sequence[str]) -> float:
    return max(abs(found.differences[best, other].value) for other in others)


def _number(value: float, measure: Measure) -> str:
    return measure.size(value).split()[0]


def _perplexity(value: float, measure: Measure) -> str:
    if measure is not LOSS or abs(value) > 1:
        return ""
    return f"; perplexity {math.expm1(abs(value)):.1%} higher".replace("%", " %")


def _digits(width: float) -> int:
    """Return the digits behind the point that tell the ends of an interval apart."""
    return max(0, min(6, 2 - math.floor(math.log10(width)) - 1)) if width > 0 else 3


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED + 1:
        shown.append(f"{len(names) - MOST_NAMED} others")
    else:
        shown += names[MOST_NAMED:]
    quoted = [f"{name}" for name in shown]
    return quoted[0] if len(quoted) == 1 else f"{'; '.join(quoted[:-1])} and {quoted[-1]}"


def _who(names: Sequence[str], everybody: Sequence[str]) -> str:
    if len(names) == len(everybody) > 1:
        return "Both" if len(names) == 2 else f"All {len(names)}"
    return _listed(names)


def _count(number: int) -> str:
    return "the two" if number == 2 else f"the {number} groups"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
