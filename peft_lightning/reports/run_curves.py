"""The curves of a run: its losses by tokens and by time, its learning rate, what else it logs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Literal

import numpy as np

from peft_lightning.reports.page import Html, figure, figures, paragraph
from peft_lightning.reports.plots import Series, heat_map, line_plot
from peft_lightning.reports.run_record import RunRecord
from peft_lightning.reports.tables import table

FEWEST = 3  # points of a curve; fewer are read faster as numbers
FEWEST_SMOOTHED = 20
MOST_FIGURES = 12  # of other metrics
MOST_COLUMNS = 200  # of the map of gradient norms
NORMS = "virtual_token_grad_norms"
KNOWN = {"train/loss", "lr", "grad_norm", "epoch", "tokens_per_second", "peak_memory_mib", NORMS}
OF_THE_LOSS = ("val/perplexity", "val/bits_per_byte")  # whose curves look like that of the loss


def loss_curves(record: RunRecord) -> Html:
    """Return the losses by tokens and by time; a table while there are few of them."""
    if not _is_long(record, "train/loss") and not _is_long(record, "val/loss"):
        return _few_losses(record)
    drawn = [figure(_losses(record, "tokens", 1), "By tokens of training.")]
    unit, name = _unit(record)
    by_time = _losses(record, "seconds", unit, f"training time ({name})")
    drawn.append(figure(by_time, "By time of training alone, validations left out."))
    return figures(*drawn)


def training_curves(record: RunRecord) -> Html:
    """Return learning rate, gradient norm and speed by step."""
    named = {
        "lr": ("learning rate", False, "Learning rate."),
        "grad_norm": ("gradient norm", True, "Norm of the gradient, before clipping."),
        "tokens_per_second": ("tokens per second", False, "Speed."),
    }
    drawn = []
    for metric, (label, is_logarithmic, caption) in named.items():
        if _is_long(record, metric):
            steps, values = record.values("train", metric)
            series = [Series(label, steps, values)]
            drawn.append(figure(line_plot(series, "step", label, log_y=is_logarithmic), caption))
    if norms := _norm_map(record):
        drawn.append(figure(norms, "Norm of the gradient of each virtual token."))
    return figures(*drawn) if drawn else Html("")


def other_curves(record: RunRecord) -> Html:
    """Return a curve of each other metric of the validations, and of what a user logs."""
    drawn: list[Html] = []
    numbers: list[list[Any]] = []
    for (kind, name), members in _other_metrics(record).items():
        curves = [(member, *record.values(kind, member)) for member in members]
        is_long = any(len(set(steps)) >= FEWEST for _, steps, _ in curves)
        if is_long and len(drawn) < MOST_FIGURES and not name.startswith(OF_THE_LOSS):
            style: Literal["points", "line"] = "points" if kind == "val" else "line"
            series = [Series(member, x, y, kind=style) for member, x, y in curves]
            drawn.append(figure(line_plot(series, "step", name), name))
        else:
            numbers += [[member, y[-1], x[-1]] for member, x, y in curves]
    blocks = [figures(*drawn)] if drawn else []
    if numbers:
        blocks.append(table(["metric", "last value", "at step"], numbers))
    return Html("".join(blocks))


def _other_metrics(record: RunRecord) -> dict[tuple[str, str], list[str]]:
    """Return the metrics by kind of line and name, those of the sources with that of all."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, lines in (("val", record.val_curve), ("train", record.train_curve)):
        for name in dict.fromkeys(name for line in lines for name in line["metrics"]):
            if name not in KNOWN and not name.startswith("val/loss"):
                of_all = "/".join(name.split("/")[:2]) if kind == "val" else name
                found.setdefault((kind, of_all), []).append(name)
    return found


def _losses(record: RunRecord, along: str, unit: float, label: str = "tokens") -> str:
    series = []
    x, y = record.values("train", "train/loss", along)
    places = [value / unit for value in x]
    if len(y) >= FEWEST_SMOOTHED:
        series.append(Series("training, as logged", places, y, "training", kind="faint"))
        series.append(Series("training, smoothed", places, smoothed(y), "training"))
    elif y:
        series.append(Series("training", places, y))
    for name in _validation_losses(record):
        x, y = record.values("val", name, along)
        shown = name.replace("val/loss", "validation").replace("validation/", "validation, ")
        series.append(Series(shown, [value / unit for value in x], y, kind="points"))
    return line_plot(series, label, "loss (nats per token)")


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the mean of each value with those around it, a 25th of all of them.

    Near the ends fewer are around it. What is not finite is left out.
    """
    numbers = np.asarray(values, float)
    finite = np.isfinite(numbers)
    sums = np.concatenate([[0], np.cumsum(np.where(finite, numbers, 0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    places = np.arange(len(numbers))
    reach = max(1, len(numbers) // 50)
    first, end = np.maximum(0, places - reach), np.minimum(len(numbers), places + reach + 1)
    with np.errstate(invalid="ignore"):
        found = (sums[end] - sums[first]) / (counts[end] - counts[first])
    return [float(value) for value in found]


def _validation_losses(record: RunRecord) -> list[str]:
    """Return the names of the losses of validation, that of all sources first."""
    names = {n for x in record.val_curve for n in x["metrics"] if n.startswith("val/loss")}
    return sorted(names)


def _few_losses(record: RunRecord) -> Html:
    rows = [
        [line["step"], line["tokens"], line["metrics"].get(f"{kind}/loss"), name]
        for kind, name in (("train", "training"), ("val", "validation"))
        for line in record.history
        if line["kind"] == kind and f"{kind}/loss" in line["metrics"]
    ]
    if not rows:
        return paragraph("No loss has been logged yet.")
    return table(["step", "tokens", "loss (nats per token)", "of"], rows)


def _is_long(record: RunRecord, metric: str) -> bool:
    kind = "val" if metric.startswith("val/") else "train"
    steps, values = record.values(kind, metric)
    return len({s for s, v in zip(steps, values, strict=True) if isfinite(v)}) >= FEWEST


def _unit(record: RunRecord) -> tuple[float, str]:
    """Return the seconds of the unit in which the time of a run is read best, and its name."""
    longest = max((line["seconds"] for line in record.history), default=0)
    units = ((3600, "h", 2 * 3600), (60, "min", 120))
    return next(((size, name) for size, name, least in units if longest > least), (1, "s"))


def _norm_map(record: RunRecord) -> str | None:
    """Return the gradient norms of virtual tokens by step, means of neighbouring steps."""
    found = [(x["step"], norms) for x in record.train_curve if (norms := _norms(x))]
    found = [(step, norms) for step, norms in found if len(norms) == len(found[-1][1])]
    if len(found) < FEWEST:
        return None
    groups = np.array_split(np.arange(len(found)), min(MOST_COLUMNS, len(found)))
    values = np.array([norms for _, norms in found], float)
    columns = np.stack([values[group].mean(axis=0) for group in groups], axis=1)
    span = (found[0][0], found[-1][0])
    return heat_map(columns.tolist(), "step", "virtual token", "gradient norm", span)


def _norms(line: dict[str, Any]) -> Sequence[float]:
    found = line.get(NORMS, line["metrics"].get(NORMS))
    return found if isinstance(found, list) else []
