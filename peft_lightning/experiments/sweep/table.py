"""The table at the end of a sweep, and what to do with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from peft_lightning.experiments.sweep.progress import time_left
from peft_lightning.experiments.sweep.state import (
    FAILED,
    FINISHED,
    QUEUED,
    STOPPED_EARLY,
    PointState,
    SweepState,
)
from peft_lightning.process.progress_format import clock

COLUMNS = ("point", "status", "val/loss", "steps", "time")


def sweep_table(state: SweepState) -> str:
    """Return a table of all points that were asked for, and the errors of those that failed."""
    points = state.asked_points()
    rows = [COLUMNS, *(_row(point) for point in points)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(map(_cell, range(len(row)), row, widths)).rstrip() for row in rows]
    lines += [
        f"{p.name} failed {p.attempts} times: {p.error} (its output: {state.log(p)})"
        for p in points
        if p.status == FAILED
    ]
    if others := state.other_points():
        lines.append(f"{len(others)} more points of earlier sweeps are in {state.folder}")
    return "\n".join(lines)


def _cell(column: int, text: str, width: int) -> str:
    """Return a cell: words to the left, numbers to the right."""
    return f"{text:<{width}}" if column < 2 else f"{text:>{width}}"


def _row(point: PointState) -> tuple[str, ...]:
    return (
        point.name,
        point.reason or point.status if point.status == STOPPED_EARLY else point.status,
        "" if point.val_loss is None else f"{point.val_loss:.4f}",
        "" if point.step is None else f"{point.step:,}",
        clock(point.seconds) if point.seconds else "",
    )


def ending(state: SweepState) -> str:
    """Return what comes next."""
    compare = f"python -m peft_lightning compare {shlex.quote(str(state.folder))}"
    counts = [p.status for p in state.asked_points()]
    missing = len(counts) - counts.count(FINISHED) - counts.count(STOPPED_EARLY)
    if not missing:
        return f"to compare them:\n  {compare}"
    what = f"{missing} of {len(counts)} points are not finished"
    if queued := counts.count(QUEUED):
        what += f", {queued} of them in the queue"
    what += "; the same command goes on with them"
    if not counts.count(FINISHED):
        return what
    return f"{what}. To compare the others:\n  {compare}"


def plan_text(state: SweepState, jobs: int) -> str:
    """Return the points with their status, how many there are, and the time if it is known."""
    points = state.asked_points()
    width = max(len(point.name) for point in points)
    lines = [f"{point.name:<{width}}  {point.status}" for point in points]
    left = time_left(points, {}, jobs)
    to_run = sum(point.status not in (FINISHED, STOPPED_EARLY) for point in points)
    about = "" if left is None or not to_run else f", about {clock(left)}"
    return "\n".join([*lines, f"{len(points)} points, {to_run} to train{about}"])


def as_json(state: SweepState) -> dict[str, Any]:
    """Return the sweep as ``--json`` prints it."""
    points: Sequence[PointState] = state.asked_points()
    return {"folder": str(state.folder), "points": [asdict(point) for point in points]}
