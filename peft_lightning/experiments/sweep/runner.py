"""Trains the points of a sweep, some at a time, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from signal import SIGINT

from peft_lightning.experiments.sweep.process import (
    PointProcess,
    Start,
    describe_exit,
    start_python,
)
from peft_lightning.experiments.sweep.progress import SweepProgress, one_point
from peft_lightning.experiments.sweep.state import (
    CONFIG,
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    PointState,
    SweepState,
)
from peft_lightning.process.signals import STOP

POLL = 0.1  # seconds between two looks at what runs
Enough = Callable[[PointState], bool]  # whether a point has come as far as it should for now


class SweepRunner:
    """Starts ``fit`` for each point, tries failed ones again, and keeps ``sweep.json`` up to date.

    A stop signal is passed on to what runs, which saves a checkpoint; ``run`` returns when all has
    ended, and ``STOP`` holds the signal.

    Args:
        state: The sweep.
        extra: Further options of ``fit`` that are no part of a point's config.
        jobs: Points that train at the same time.
        retries: How often a failed point is started again.
        env: The environment of the processes.
        say: Takes a line for the user.
        start: Starts python; a process of the operating system if None.
    """

    def __init__(
        self,
        state: SweepState,
        extra: list[str],
        *,
        jobs: int = 1,
        retries: int = 1,
        env: Mapping[str, str],
        say: Callable[[str], object],
        start: Start | None = None,
    ) -> None:
        self.state, self.extra, self.jobs, self.retries = state, extra, jobs, retries
        self.env, self.say, self._start_program = dict(env), say, start or start_python
        self.progress = SweepProgress(state.asked_points(), jobs)
        self._asked_to_stop: set[str] = set()

    def run(self, points: Iterable[PointState], enough: Enough | None = None) -> None:
        """Train points until each is finished, has failed too often, or ``enough`` says so.

        Args:
            points: In the order in which they are started.
            enough: Is asked again and again; such a point is stopped with a checkpoint.
        """
        waiting = [p for p in points if p.status != FINISHED and not (enough and enough(p))]
        for point in waiting:
            point.attempts = 0
        running: dict[str, PointProcess] = self.progress.running
        with self.progress:
            while running or (waiting and STOP.received is None):
                while waiting and len(running) < self.jobs and STOP.received is None:
                    point = waiting.pop(0)
                    running[point.name] = self._start(point)
                time.sleep(POLL)
                for name, process in list(running.items()):
                    point = self.state.points[name]
                    if (status := process.poll()) is not None:
                        del running[name]
                        self._ended(point, process, status, waiting)
                    elif STOP.received is not None or (enough and enough(point)):
                        self._stop(point, process)
                self.progress.refresh()

    def _start(self, point: PointState) -> PointProcess:
        folder = self.state.path(point)
        point.status, point.error = RUNNING, None
        self.state.save()
        fit = ["-m", "peft_lightning", "fit", "--config", str(folder / CONFIG), *self.extra]
        fit += ["--ckpt_path", "last"]
        columns = self.progress.columns()
        log = self.state.log(point)
        return PointProcess(fit, log, self.env, columns, self._start_program)

    def _stop(self, point: PointState, process: PointProcess) -> None:
        """Ask a point, once, to save and end.

        By default with the signal for the run alone: SIGTERM would also put a SLURM job, in which
        this sweep may run, back into the queue.
        """
        if point.name not in self._asked_to_stop:
            self._asked_to_stop.add(point.name)
            process.send_signal(STOP.received or SIGINT)

    def _ended(
        self, point: PointState, process: PointProcess, status: int, waiting: list[PointState]
    ) -> None:
        was_asked = point.name in self._asked_to_stop
        self._asked_to_stop.discard(point.name)
        point.seconds = round(point.seconds + process.seconds, 2)
        point.status = FINISHED if status == 0 else STOPPED if was_asked else FAILED
        if point.status == FAILED:
            point.attempts += 1
            point.error = process.error() or describe_exit(status)
            if status < 0:
                point.error = describe_exit(status)
        self.state.refresh(point)
        if status == 0:
            point.status = FINISHED
        self.state.save()
        again = ""
        if point.status == FAILED and point.attempts <= self.retries:
            waiting.append(point)
            again = "; to be tried again"
        if point.status in (FINISHED, FAILED):
            self.say(one_point(point, self.state.log(point)) + again)
