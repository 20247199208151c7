"""The plots of a comparison: what an option changes, what quality costs, how the runs learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from peft_lightning.reports.comparison import ComparedSet, GroupResult
from peft_lightning.reports.plots import Point, Series, line_plot, scatter_plot
from peft_lightning.reports.run_curves import smoothed

LOSS = "validation loss (nats per token)"
LOG_FROM = 8  # from this ratio of the largest value to the smallest an axis is logarithmic
BARS = (
    "Intervals of 95 % to compare groups by: the chance of the seeds, and that of the rows without "
    "what all groups have in common."
)
COSTS = {
    "trainable_parameters": ("trainable parameters", 1),
    "adapter_bytes": ("adapter file (MiB)", 2**20),
    "peak_memory_bytes": ("peak memory (GiB)", 2**30),
    "train_seconds": ("training time (min)", 60),
}


class Plot(NamedTuple):
    """A plot as SVG, with its caption."""

    svg: str
    caption: str


def option_plot(one: ComparedSet) -> Plot | None:
    """Return the loss by the one numeric option that varies; None if there is no such."""
    groups = [group for group in one.groups if not group.is_base]
    names = list(dict.fromkeys(name for group in groups for name in group.options))
    values = [group.options.get(names[0]) for group in groups] if len(names) == 1 else []
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or len(numbers) < len(groups):
        return None
    ordered = sorted(zip(numbers, groups, strict=True), key=lambda pair: pair[0])
    x = [float(value) for value, _ in ordered]
    losses = [group.to_compare["loss"] for _, group in ordered]
    means = Series(
        "mean over seeds, 95 % interval",
        x,
        [loss.value for loss in losses],
        low=[loss.low for loss in losses],
        high=[loss.high for loss in losses],
        kind="points",
    )
    series = [means]
    for value, group in ordered:
        points = [run.loss for run in group.runs if run.loss is not None]
        if len(points) > 1:
            series += [
                Series(f"{group.name}, {run.name}", [value], [run.loss], "each seed", kind="points")
                for run in group.runs
                if run.loss is not None
            ]
    svg = line_plot(series, names[0], LOSS, log_x=_is_wide(x))
    return Plot(svg, f"The loss by {names[0]}. {BARS}")


def cost_plots(one: ComparedSet) -> list[Plot]:
    """Return the loss against parameters, bytes, memory and time, where these differ."""
    groups = [group for group in one.groups if not group.is_base]
    drawn = []
    for name, (label, unit) in COSTS.items():
        known = [(g, g.facts.get(name)) for g in groups]
        points = [_point(g, value / unit) for g, value in known if value]
        if len({point.x for point in points}) > 1:
            svg = scatter_plot(points, label, LOSS, log_x=_is_wide([p.x for p in points]))
            drawn.append(Plot(svg, f"Loss against {label}: best is to the lower left."))
    return drawn


def curve_plots(one: ComparedSet) -> list[Plot]:
    """Return the losses of training and validation of all runs, by tokens and by time."""
    drawn = []
    for kind, metric, label in (
        ("val", "val/loss", LOSS),
        ("train", "train/loss", "training loss, smoothed (nats per token)"),
    ):
        for along, unit, x_label in (("tokens", 1, "tokens"), ("seconds", 60, "time (min)")):
            series = _curves(one.groups, kind, metric, along, unit)
            if series:
                svg = line_plot(series, f"{x_label} of training", label)
                drawn.append(Plot(svg, f"{label.split(' (')[0].capitalize()} by {x_label}."))
    return drawn


def plots_of(one: ComparedSet) -> list[Plot]:
    """Return all plots of a set but the learning curves."""
    plot = option_plot(one)
    return ([] if plot is None else [plot]) + cost_plots(one)


def _curves(
    groups: Sequence[GroupResult], kind: str, metric: str, along: str, unit: float
) -> list[Series]:
    found = []
    for group in groups:
        for run in group.runs:
            x, y = run.record.values(kind, metric, along)
            if len(y) > 1:
                places, values = [value / unit for value in x], y
                look: Any = "points"
                if kind == "train":
                    values, look = smoothed(y), "line"
                found.append(Series(run.name, places, values, group.name, kind=look))
    return found


def _point(group: GroupResult, x: float) -> Point:
    loss = group.to_compare["loss"]
    return Point(group.name, x, loss.value, y_err=(loss.value - loss.low, loss.high - loss.value))


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= LOG_FROM * min(values)
