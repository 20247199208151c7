"""Successive halving: all points train a little, the better half of them on, and so forth.

Jamieson and Talwalkar 2016 (arXiv 1502.07943), synchronously: points are compared when all of them
have come as far. Optuna's ``SuccessiveHalvingPruner`` and ``HyperbandPruner`` decide by the trials
that came before (ASHA): of points that train in turn, the first would never be stopped; and a trial
of theirs is one run, not the runs of several seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from peft_lightning.experiments.sweep.runner import SweepRunner
from peft_lightning.experiments.sweep.state import (
    FAILED,
    FINISHED,
    STOPPED,
    STOPPED_EARLY,
    PointState,
    SweepState,
)
from peft_lightning.process.signals import STOP

METRIC = "val/loss"
HISTORY = "history.jsonl"


@dataclass(frozen=True)
class Validation:
    """A validation of a run: the loss in nats a token, after so many optimizer steps."""

    step: int
    loss: float


def better_half(losses: Mapping[str, float]) -> list[str]:
    """Return the names with the smallest losses, the best first: half of them, rounded up.

    A loss that is no number is the worst. Of equal ones, those that come first are better.
    """
    ranked = sorted(losses, key=lambda name: _or_worst(losses[name]))
    return ranked[: math.ceil(len(ranked) / 2)]


def _or_worst(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def validations(folder: Path) -> list[Validation]:
    """Return the validations of the run in ``folder`` so far, that before training left out."""
    found = []
    with suppress(FileNotFoundError):
        for line in (folder / HISTORY).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line, half written
                row = json.loads(line)
                if row["kind"] == "val" and row["step"] > 0 and METRIC in row["metrics"]:
                    found.append(Validation(row["step"], row["metrics"][METRIC]))
    return found


class Halving:
    """Trains points in rungs: after each, the worse half of them is stopped.

    A point is its settings with all of their seeds, compared by the mean of their losses. The runs
    stop with a checkpoint and go on from it, so the learning rate follows the schedule of the whole
    run. All decisions follow from the histories of the runs: a sweep that goes on makes them again.

    Args:
        state: The sweep.
        runner: Trains.
        first_rung: The number of validations after which the field is halved for the first time;
            then after twice and four times as many.
        say: Takes a line for the user.
    """

    def __init__(
        self,
        state: SweepState,
        runner: SweepRunner,
        first_rung: int,
        say: Callable[[str], object],
    ) -> None:
        self.state, self.runner, self.rung, self.say = state, runner, first_rung, say

    def run(self) -> None:
        """Train until one point is left, and that to its end."""
        field = self._groups()
        for point in self.state.asked_points():
            if point.status == STOPPED_EARLY:
                point.status = STOPPED
        while True:
            alone = len(field) == 1
            members = [point for group in field.values() for point in group]
            self.runner.run(members, None if alone else self._has_come_far_enough)
            if STOP.received is not None or alone or not field:
                return
            field = self._halved(_without_failed(field))
            if all(p.status == FINISHED for group in field.values() for p in group):
                return
            self.rung *= 2

    def _groups(self) -> dict[str, list[PointState]]:
        groups: dict[str, list[PointState]] = {}
        for point in self.state.asked_points():
            groups.setdefault(point.group, []).append(point)
        return groups

    def _has_come_far_enough(self, point: PointState) -> bool:
        return len(validations(self.state.path(point))) >= self.rung

    def _halved(self, field: dict[str, list[PointState]]) -> dict[str, list[PointState]]:
        """Return the better half of the field; the others are noted as stopped."""
        losses = {name: self._loss(group) for name, group in field.items()}
        ranked = better_half(losses)
        order = sorted(losses, key=lambda name: _or_worst(losses[name]))
        for place, name in enumerate(order, 1):
            if name in ranked:
                continue
            for point in field[name]:
                if point.status != FINISHED:
                    self._stop(point, place, len(field))
        self.state.save()
        return {name: field[name] for name in field if name in ranked}

    def _stop(self, point: PointState, place: int, among: int) -> None:
        seen = validations(self.state.path(point))
        reached = seen[min(self.rung, len(seen)) - 1]
        point.status = STOPPED_EARLY
        point.reason = f"stopped early at step {reached.step}, {ordinal(place)} of {among}"
        if point.val_loss is None:
            point.val_loss = min(v.loss for v in seen)
        self.say(f"{point.name}: {point.reason}, val/loss {reached.loss:.4g}")

    def _loss(self, group: Sequence[PointState]) -> float:
        """Return the mean loss of the seeds of a point at the rung."""
        losses = []
        for point in group:
            seen = validations(self.state.path(point))
            losses.append(seen[min(self.rung, len(seen)) - 1].loss if seen else math.inf)
        return fmean(losses)


def _without_failed(field: Mapping[str, list[PointState]]) -> dict[str, list[PointState]]:
    """Return the field without failed runs; a point without any run is not in it."""
    kept = {name: [p for p in group if p.status != FAILED] for name, group in field.items()}
    return {name: group for name, group in kept.items() if group}


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 4th, 11th, 21st."""
    ends = {1: "st", 2: "nd", 3: "rd"}
    is_teen = number % 100 in (11, 12, 13)
    return f"{number}{'th' if is_teen else ends.get(number % 10, 'th')}"
