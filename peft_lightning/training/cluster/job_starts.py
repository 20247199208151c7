"""How often a job has started, and how each start ended: one that gets nowhere is not repeated."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from peft_lightning.files import atomic_text
from peft_lightning.messages import RunError
from peft_lightning.process import slurm

FILE = "starts.json"
FACTS_FILE = "peft_lightning.json"  # that of adapters.folder, which would import torch
STOPPED = "stopped"


class JobStarts:
    """The starts of a job in its run's folder.

    Each has the step of the run's last checkpoint when it began, and how it ended: None for what
    did not say so, as a process that was killed.

    Args:
        folder: Of the run.
        job: Of SLURM.
    """

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self.job = folder, job
        self._file = folder / "submission" / FILE
        self._is_first = os.environ.get("SLURM_PROCID", "0") == "0"
        known: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            known = json.loads(self._file.read_text(encoding="utf-8"))
        self.starts: list[dict[str, Any]] = known["starts"] if known.get("job") == job else []

    def begin(self) -> None:
        """Note a start.

        Raises:
            RunError: If the last two starts have failed, or ended without a word and a new
                checkpoint.
        """
        self.starts = [s for s in self.starts if s["restart"] != slurm.restarts()]
        last = self.starts[-2:]
        step = self._step()
        ends = [str(start["end"] or "it was killed, or its node has crashed") for start in last]
        failed = all(start["end"] not in (None, STOPPED) for start in last)
        lost = all(start["end"] != STOPPED and start["step"] == step for start in last)
        if len(last) == 2 and (failed or lost):
            raise RunError(
                f"job {self.job} has failed in two starts and is not tried again: {ends[-1]}; "
                "submit --resume goes on when the cause is mended"
            )
        self.starts.append({"restart": slurm.restarts(), "step": step, "end": None})
        self._write()

    def refusal(self) -> str | None:
        """Return why the job is not to go back into the queue; None if it may."""
        step = self._step()
        if len(self.starts) >= 2 and all(start["step"] == step for start in self.starts[-2:]):
            return f"two starts have made no new checkpoint, the last is of step {step:,}"
        self.end(STOPPED)
        return None

    def end(self, line: str) -> None:
        """Note how this start ended."""
        if self.starts:
            self.starts[-1]["end"] = line
            self._write()

    def _write(self) -> None:
        if self._is_first:
            with suppress(OSError):  # a full disk has its own message
                facts = {"job": self.job, "starts": self.starts}
                atomic_text(self._file, json.dumps(facts, indent=1) + "\n")

    def _step(self) -> int:
        with suppress(OSError, ValueError, TypeError):
            facts = self.folder / "checkpoints" / "last.ckpt" / FACTS_FILE
            return int(json.loads(facts.read_text(encoding="utf-8")).get("step", 0))
        return 0


def begin_start(folder: Path) -> JobStarts | None:
    """Note a start of the job that this process was submitted as, if there is one.

    Raises:
        RunError: If two starts have failed already.
    """
    job = slurm.current_job()
    if job is None:
        return None
    starts = JobStarts(folder, job)
    starts.begin()
    slurm.refusal, slurm.note_failure = starts.refusal, starts.end
    return starts
