"""What follows from a comparison, in plain sentences: what is beyond noise and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft_lightning.experiments.compare.statistics import Statistics
from peft_lightning.experiments.compare.wording import LOSS, Measure, are, listed, who

FEW_ROWS = 30  # below, the mean over rows is far from normal


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
    ranked = sorted(groups, key=lambda g: -measure.goodness(found.means[g].value))
    sentences = [_best(found, ranked, measure)]
    if len(ranked) > 1 and _knows_seeds(found, ranked[0], ranked[1:]):
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
    several = sorted({number for number in seeds.values() if number > 1})
    alone = [name for name, number in seeds.items() if number == 1]
    if not several:
        sentences.append(
            f"One seed{' each' * (len(seeds) > 1)}: differences between runs may be chance of the "
            "seed, which the intervals do not contain; run --seeds 0,1,2 to know."
        )
    elif found.pooled_spread is not None:
        many = f"{several[0]} to {several[-1]}" if len(several) > 1 else str(several[0])
        sentences.append(
            f"Noise floor: the same options with another seed change the {measure.name} by "
            f"{measure.size(found.pooled_spread)} (standard deviation; {many} seeds a group)."
        )
        if alone:
            has, it = ("has", "it") if len(alone) == 1 else ("have", "them")
            sentences.append(
                f"{listed(alone)} {has} one seed only; the spread of the others is taken for {it}."
            )
    if found.rows < FEW_ROWS:
        sentences.append(f"Only {found.rows} rows were evaluated, so the intervals are rough.")
    return sentences


def _best(found: Statistics, ranked: Sequence[str], measure: Measure) -> str:
    """Return which group is best, or which cannot be told apart."""
    best, others = ranked[0], ranked[1:]
    word = "lowest" if measure.lower_is_better else "highest"
    value = measure.with_unit(found.means[best].value)
    if not others:
        return f"The {measure.name} of {best} is {value}."
    differences = {other: found.differences[other, best] for other in others}
    if all(d.value == 0 for d in differences.values()):
        return f"{who(ranked, ranked)} have the same {measure.name}, {value}."
    step = differences[others[0]]
    told = f"95 % interval {measure.interval(step)}{measure.perplexity(step.value)}"
    if not _knows_seeds(found, best, others):
        return (
            f"{best} has the {word} {measure.name} of these runs, {value}, but which is best is "
            f"not known: without several seeds, the order may be chance. The next, {others[0]}, is "
            f"worse by {measure.size(step.value)} ({told}, of the rows alone)."
        )
    beaten = [other for other in others if differences[other].is_beyond_noise]
    alike = [other for other in others if other not in beaten]
    if not alike:
        return (
            f"{best} is best, beyond noise: {measure.name} {value}; the next, {others[0]}, is "
            f"worse by {measure.size(step.value)} ({told})."
        )
    if not beaten:
        among = "the two" if len(ranked) == 2 else f"the {len(ranked)} groups"
        rest = "the other is" if len(others) == 1 else "the others are"
        widest = max(abs(differences[other].value) for other in others)
        return (
            f"No difference between {among} is beyond noise. The {word} {measure.name}, {value}, "
            f"is that of {best}; {rest} within {measure.size(widest)} of it."
        )
    return (
        f"{best} has the {word} {measure.name}, {value}, but cannot be told apart from "
        f"{listed(alike)}: the difference is within noise. {listed(beaten)} {are(beaten)} worse, "
        f"beyond noise, by {measure.span([abs(differences[o].value) for o in beaten])}."
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
    if least == best and min(known.values()) < max(known.values()):
        least_too = f"{best} also has the fewest trainable parameters, {known[best]:,.0f}"
        return [f"Of those that cannot be told apart, {least_too}."]
    if known[least] == known[best]:
        return []
    return [
        f"Of those that cannot be told apart, {least} has the fewest trainable parameters: "
        f"{known[least]:,.0f}, where {best} has {known[best]:,.0f}."
    ]


def _against_base(found: Statistics, ranked: Sequence[str], base: str, measure: Measure) -> str:
    """Return which groups are better than the untouched base, worse, or neither."""
    of_base = f"the untouched base ({measure.value(found.means[base].value)})"
    gains = {group: found.differences[group, base] for group in ranked}
    beyond = [group for group in ranked if gains[group].is_beyond_noise]
    better = [group for group in beyond if measure.goodness(gains[group].value) > 0]
    worse = [group for group in beyond if group not in better]
    unclear = [group for group in ranked if group not in beyond]
    if len(unclear) == len(ranked) > 1:
        whom = "Neither" if len(ranked) == 2 else f"None of the {len(ranked)}"
        return f"{whom} can be told apart from {of_base}."
    parts: list[str] = []
    for names, word in ((better, "better"), (worse, "worse")):
        if names:
            span = measure.span([abs(gains[name].value) for name in names])
            than = "it" if parts else of_base
            noise_of = "noise" if _knows_seeds(found, base, names) else "the chance of the rows"
            better_or_worse = f"{who(names, ranked)} {are(names)} {word} than {than}"
            parts.append(f"{better_or_worse}, beyond {noise_of}, by {span}")
    if unclear:
        parts.append(f"{listed(unclear)} cannot be told apart from {'it' if parts else of_base}")
    return f"{'; '.join(parts)}."


def _knows_seeds(found: Statistics, one: str, others: Sequence[str]) -> bool:
    """Whether differences hold the chance of the seeds too."""
    return all(found.differences[one, other].with_seeds for other in others)
