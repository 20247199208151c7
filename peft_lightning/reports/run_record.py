"""What a run has left in its folder: its configuration, its results, its curve, its samples."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import yaml

from peft_lightning.messages import UserError

HISTORY, SAMPLES, SUMMARY = "history.jsonl", "samples.jsonl", "summary.json"
RUN, CONFIG, LOCK = "run.json", "config.yaml", "run.lock"


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder tells it, finished or not.

    Attributes:
        folder: That was read.
        name: Of the folder.
        config: Its ``config.yaml``; empty for a run that was not started from the command line.
        summary: Its ``summary.json``; empty if the run has not ended yet.
        history: The lines of ``history.jsonl``, as ``training/history.py`` describes them.
        samples: The lines of ``samples.jsonl``: ``step``, ``prompt`` and ``prediction``.
        status: When it was read: finished, "stopped: ..." with the reason, running, or killed,
            without a word of its end. A run on another machine counts as killed, as does one where
            the system does not tell who holds a lock.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    history: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    status: str = "killed"

    @property
    def best_checkpoint(self) -> Path | None:
        """The folder ``best.ckpt``; None if the run has not validated yet."""
        return self._checkpoint("best.ckpt")

    @property
    def last_checkpoint(self) -> Path | None:
        """The folder ``last.ckpt``; None if none was saved yet."""
        return self._checkpoint("last.ckpt")

    @property
    def train_curve(self) -> list[dict[str, Any]]:
        """The lines of training, in the order of their steps."""
        return [line for line in self.history if line["kind"] == "train"]

    @property
    def val_curve(self) -> list[dict[str, Any]]:
        """The lines of the validations, in the order of their steps."""
        return [line for line in self.history if line["kind"] == "val"]

    @property
    def warnings(self) -> list[str]:
        """What the run has warned of, once each."""
        return [line["text"] for line in self.history if line["kind"] == "warning"]

    def values(self, kind: str, metric: str, along: str = "step") -> tuple[list[Any], list[float]]:
        """Return where a metric was logged, and its values.

        Args:
            kind: Of the lines: train or val.
            metric: Its name, such as ``val/loss``.
            along: step, epoch, tokens or seconds.
        """
        lines = [x for x in self.history if x["kind"] == kind and metric in x["metrics"]]
        return [line[along] for line in lines], [line["metrics"][metric] for line in lines]

    def _checkpoint(self, name: str) -> Path | None:
        folder = self.folder / "checkpoints" / name
        replaced = folder.with_name(f"{name}.previous")  # where a crash has left it
        return next((path for path in (folder, replaced) if path.is_dir()), None)


def read_run(folder: str | Path) -> RunRecord:
    """Read what a run has left in its folder, also while it is running.

    Raises:
        UserError: If it is no run's folder, or a file in it is damaged.
    """
    folder = Path(folder).expanduser()
    if not any((folder / name).is_file() for name in (RUN, SUMMARY, HISTORY)):
        what = "is not there" if not folder.exists() else "is a file" if folder.is_file() else ""
        below = [p.parent.name for p in sorted(folder.glob(f"*/{RUN}"))] if not what else []
        there = f"; these folders in it are: {', '.join(below[:8])}" if below else ""
        raise UserError(
            f"{folder} {what}: give the folder of a run"
            if what
            else f"{folder} is no run's folder, it has no {RUN}, {SUMMARY} or {HISTORY}{there}"
        )
    history = [line for line in _lines(folder / HISTORY) if {"kind", "step"} <= line.keys()]
    for line in history:
        metrics = line.get("metrics") or {}
        line["metrics"] = {name: nan if v is None else v for name, v in metrics.items()}
    summary = _summary(folder / SUMMARY)
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        config=_config(folder / CONFIG),
        summary=summary,
        history=history,
        samples=_lines(folder / SAMPLES),
        status=_status(folder, summary, history),
    )


def _status(folder: Path, summary: dict[str, Any], history: list[dict[str, Any]]) -> str:
    told = str(summary.get("status", ""))
    if _is_locked(folder / LOCK):  # its process is alive, and writes the summary last
        is_of_before = _is_newer(folder / RUN, folder / SUMMARY)
        return "running" if is_of_before or not told else told
    seen = max((line["step"] for line in history), default=0)
    return told if told and summary.get("steps", 0) >= seen else "killed"


def _lines(file: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file that may be growing."""
    found = []
    for line in file.read_bytes().split(b"\n") if file.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _summary(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    return found if isinstance(found, dict) else {}


def _is_newer(file: Path, other: Path) -> bool:
    both = file.is_file() and other.is_file()
    return both and file.stat().st_mtime_ns > other.stat().st_mtime_ns


def _is_locked(file: Path) -> bool:
    """Whether a process of this machine holds a lock on ``file``, as Linux tells.

    The file is not opened: a process that closes it would give up a lock of its own.
    """
    locks = Path("/proc/locks")
    if not (file.is_file() and locks.is_file()):
        return False
    found = os.stat(file)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    return any(device in line.split() for line in locks.read_text().splitlines())
