"""``sweep.json``: the points of a sweep, what became of each, and the config they vary."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from peft_lightning.experiments.sweep.names import point_names
from peft_lightning.experiments.sweep.points import Settings, without_seed
from peft_lightning.files import atomic_text, sha256_of_json
from peft_lightning.messages import UserError, shortened, without_secrets

FILE = "sweep.json"
LOCK = "sweep.lock"
LOG = "output.log"
CONFIG = "point.yaml"  # in a point's folder: what its fit is started with
FINISHED, FAILED, STOPPED, STOPPED_EARLY = "finished", "failed", "stopped", "stopped early"
PENDING, RUNNING, QUEUED = "pending", "running", "queued"
ABSENT = "absent"


@dataclass
class PointState:
    """A point and what became of it.

    Args:
        name: Of its folder, below the sweep's.
        settings: The options that vary, with its values.
        status: One of pending, running, queued (SLURM), finished, failed, stopped, stopped early.
        val_loss: The best ``val/loss``, in nats a token.
        step: Optimizer steps made.
        seconds: That its processes have run, all starts together; of SLURM, that it has trained.
        attempts: Starts that have failed.
        error: The last line of the output of the last failed start.
        reason: Why it was stopped early.
        job: Of SLURM, with the task.
    """

    name: str
    settings: Settings
    status: str = PENDING
    val_loss: float | None = None
    step: int | None = None
    seconds: float = 0.0
    attempts: int = 0
    error: str | None = None
    reason: str | None = None
    job: str | None = None

    @property
    def group(self) -> str:
        """What the points that differ only in their seed have in common."""
        return sha256_of_json(without_seed(self.settings))


@dataclass
class SweepState:
    """The points of a sweep in its folder.

    Args:
        folder: Of the sweep.
        base: The options that do not vary, as they were given.
        points: All points of the folder.
        asked: The names of those that the command asks for, in its order.
    """

    folder: Path
    base: dict[str, Any] = field(default_factory=dict)
    points: dict[str, PointState] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, base: Mapping[str, Any], points: Sequence[Settings]) -> SweepState:
        """Return the sweep in ``folder`` with ``points``, those of before that it has kept.

        Raises:
            UserError: If the folder holds a sweep of another config, or other things.
        """
        state = cls(folder, dict(base))
        if (folder / FILE).is_file():
            kept = read_sweep(folder)
            _check_base(folder, kept["base"], state.base)
            state.points = {p["name"]: PointState(**p) for p in kept["points"]}
        elif others := _other_files(folder):
            raise UserError(f"{folder} holds no sweep but {shortened(others)}: give another --dir")
        known = {sha256_of_json(p.settings): p for p in state.points.values()}
        new = [p for p in points if sha256_of_json(p) not in known]
        named = point_names(points, taken=state.points)
        names = {sha256_of_json(p): name for p, name in zip(points, named, strict=True)}
        for settings in points:
            key = sha256_of_json(settings)
            if settings in new:
                known[key] = PointState(names[key], settings)
                state.points[names[key]] = known[key]
            state.asked.append(known[key].name)
        for point in state.points.values():
            state.refresh(point)
        return state

    def save(self) -> None:
        """Write ``sweep.json``."""
        facts = {"base": self.base, "points": [asdict(point) for point in self.points.values()]}
        atomic_text(self.folder / FILE, json.dumps(facts, indent=1) + "\n")

    def asked_points(self) -> list[PointState]:
        """Return the points that the command asks for."""
        return [self.points[name] for name in self.asked]

    def other_points(self) -> list[PointState]:
        """Return the points of earlier commands that this one does not ask for."""
        return [p for p in self.points.values() if p.name not in self.asked]

    def path(self, point: PointState) -> Path:
        """Return the folder of a point."""
        return self.folder / point.name

    def log(self, point: PointState) -> Path:
        """Return the file with the output of a point."""
        return self.path(point) / LOG

    def write_configs(self, configs: Mapping[str, dict[str, Any]]) -> None:
        """Write ``sweep.json``, and the configs that the ``fit`` of the points are started with.

        The former is first: a folder with points alone is none of a sweep.

        Args:
            configs: By the names of the points.

        Raises:
            UserError: If a secret would be in a file.
        """
        for config in configs.values():
            removed: list[str] = []
            without_secrets(config, removed)
            if removed:
                raise UserError(
                    f"{removed[0]} is a secret, and a sweep keeps the config of each point in a "
                    "file: give it in the environment"
                )
        self.save()
        for name, config in configs.items():
            folder = self.path(self.points[name])
            folder.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
            atomic_text(folder / CONFIG, text)

    def refresh(self, point: PointState) -> None:
        """Read what the run's own ``summary.json`` says of a point."""
        summary = read_json(self.path(point) / "summary.json")
        if not summary:
            if point.status not in (FAILED, QUEUED):
                point.status = PENDING
            return
        point.val_loss, point.step = summary["best_val_loss"], summary["steps"]
        if point.job is not None:
            point.seconds = summary["train_seconds"]
        if point.status in (FAILED, STOPPED_EARLY):
            return
        if summary["status"] == FINISHED:
            point.status, point.error = FINISHED, None
        elif point.status != QUEUED:
            point.status = STOPPED


def _other_files(folder: Path) -> list[str]:
    """Return the names in a folder but those that a sweep makes at its very start."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name != LOCK and not name.startswith("."))


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return what ``sweep.json`` of a folder holds.

    Raises:
        UserError: If it is damaged.
    """
    found = read_json(folder / FILE)
    if not {"base", "points"} <= found.keys():
        raise UserError(f"{folder / FILE} cannot be read: give another --dir")
    return found


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping in a file; an empty one if there is none or it is not whole."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _check_base(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError if the options that do not vary have changed; names each with both values."""
    different = [
        f"{key}: {before.get(key, ABSENT)} there, {now.get(key, ABSENT)} now"
        for key in sorted({*before, *now})
        if before.get(key, ABSENT) != now.get(key, ABSENT)
    ]
    if different:
        raise UserError(
            f"{folder} holds a sweep of another config ({shortened(different)}): give another "
            "--dir, or the options of before"
        )
