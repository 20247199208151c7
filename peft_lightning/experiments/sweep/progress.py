"""How far a sweep is: its line of progress, and a line for each point that has ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from peft_lightning.experiments.sweep.process import PointProcess
from peft_lightning.experiments.sweep.state import FAILED, FINISHED, STOPPED_EARLY, PointState
from peft_lightning.process.progress import Progress
from peft_lightning.process.progress_format import bar, clock

OVER = (FINISHED, FAILED, STOPPED_EARLY)
SHORTEST = 40  # columns that a point's own line needs


class SweepProgress(Progress):
    """The line of a sweep: points, time left, and at a terminal the line of the running point.

    Args:
        points: Of the sweep.
        jobs: Points that train at the same time.
    """

    def __init__(self, points: Sequence[PointState], jobs: int) -> None:
        super().__init__("sweep", len(points), "points")
        self.points, self.jobs = points, jobs
        self.running: dict[str, PointProcess] = {}

    def parts(self) -> list[tuple[int, str]]:
        over = sum(point.status in OVER for point in self.points)
        numbers = [i for i, p in enumerate(self.points, 1) if p.name in self.running]
        which = "+".join(map(str, numbers[:4])) or str(over)
        left = time_left(self.points, self.running, self.jobs)
        parts = [(0, f"point {which} of {len(self.points)}")]
        parts += [(4, bar(over / max(1, len(self.points)), 8))]
        parts += [(1, "" if left is None else f"sweep {clock(left)} left")]
        for name, process in list(self.running.items())[:2]:
            parts += [(2, name), (3, process.line)]
        return parts

    def refresh(self) -> None:
        """Draw the line if it is time to."""
        self.update(sum(point.status in OVER for point in self.points))

    def columns(self) -> int:
        """Return the width for a point's own line; 0 where it would not be seen."""
        if self.jobs > 1 or not sys.stderr.isatty():
            return 0
        names = max(len(point.name) for point in self.points)
        try:
            whole = os.get_terminal_size(sys.stderr.fileno()).columns
        except OSError:
            return 0
        return max(SHORTEST, whole - names - 50)


def time_left(
    points: Sequence[PointState], running: dict[str, PointProcess], jobs: int
) -> float | None:
    """Return the seconds that a sweep still takes, by the mean of its finished points.

    Args:
        points: Of the sweep.
        running: Those of them that run.
        jobs: Points that train at the same time.

    Returns:
        None if none is finished yet.
    """
    finished = [p.seconds for p in points if p.status == FINISHED and p.seconds]
    if not finished:
        return None
    each = fmean(finished)
    left = 0.0
    for point in points:
        if point.status not in OVER:
            own = running[point.name].seconds if point.name in running else 0.0
            left += max(0.0, each - point.seconds - own)
    return left / jobs


def one_point(point: PointState, log: Path) -> str:
    """Return a line on a point that has ended."""
    if point.status == FAILED:
        return f"{point.name}: failed after {clock(point.seconds)}: {point.error} (see {log})"
    loss = "" if point.val_loss is None else f", val/loss {point.val_loss:.4g}"
    return f"{point.name}: {point.status}{loss}, {clock(point.seconds)}"
