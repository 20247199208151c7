"""The runs to compare: found in folders, with the options they were trained with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.files import SUMS_FILE, read_checksums, sha256_of_file, sha256_of_json
from peft_lightning.messages import UserError
from peft_lightning.reports.run_record import RunRecord, read_run
from peft_lightning.training.checkpoint_io import STATE_FILE
from peft_lightning.training.saved_state import HYPERPARAMETERS, read_state

RUN_FILES = ("run.json", "summary.json", "history.jsonl")
SWEEP_FILE = "sweep.json"
_NO_RUNS_BELOW = {"checkpoints", "logs", "evaluation", "wandb", "mlruns"}


@dataclass(frozen=True)
class Run:
    """A run to compare.

    Args:
        name: Unique among the runs that are compared.
        record: What its folder holds.
        checkpoint: The checkpoint to evaluate, the best one; None if there is none.
        options: Its configuration: sections ``model``, ``data`` and ``trainer``; of a run from
            Python what its checkpoint keeps of the constructors' arguments.
        problem: Why it cannot be evaluated; "" if it can.
    """

    name: str
    record: RunRecord
    checkpoint: Path | None
    options: dict[str, Any]
    problem: str = ""

    @property
    def seed(self) -> int | None:
        """The seed of the run, as its summary or its configuration has it."""
        seed = self.record.summary.get("seed", self.options.get("seed_everything"))
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None

    @property
    def status(self) -> str:
        """How the run ended, or why it cannot be evaluated."""
        return f"{self.record.status}; {self.problem}" if self.problem else self.record.status

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of the options without the class that it may name."""
        section = self.options.get(name) or {}
        found = section.get("init_args", section) if "class_path" in section else section
        return dict(found or {})

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What ``peft_lightning.json`` of the checkpoint holds."""
        assert self.checkpoint is not None
        return read_adapter_config(self.checkpoint)[1]

    @cached_property
    def base_model(self) -> str:
        """The name of the base model: as trained, or where its run's options say."""
        name = self.section("model").get("base_model")
        name = name if isinstance(name, str) else self.facts["base_model"]
        return str(name or self.record.summary.get("base_model"))

    @cached_property
    def checksum(self) -> str:
        """A hash of the trained tensors and their configuration; not of the trainer's state."""
        assert self.checkpoint is not None
        if (self.checkpoint / SUMS_FILE).is_file():
            sums = read_checksums(self.checkpoint)
        else:
            files = [f for f in sorted(self.checkpoint.iterdir()) if f.is_file()]
            sums = {file.name: sha256_of_file(file) for file in files}
        return sha256_of_json({k: v for k, v in sums.items() if k != STATE_FILE})


def find_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Return the runs of folders: each a run's own, or one with runs below it, as a sweep's.

    Raises:
        UserError: If a folder holds no run, or a file of a run is damaged.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        path = folder.expanduser()
        below = [path] if _is_run(path) else _runs_below(path) if path.is_dir() else []
        if not below:
            what = f"there is no folder {folder}" if not path.is_dir() else f"no run is in {folder}"
            raise UserError(
                f"{what}: give the folder of a run, which has its config.yaml and checkpoints, or "
                "one with such folders below it"
            )
        found += [run for run in below if run.resolve() not in {f.resolve() for f in found}]
    names = _names(found)
    return [_open(path, name) for path, name in zip(found, names, strict=True)]


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def _runs_below(folder: Path) -> list[Path]:
    found, points = [], _points_of_sweep(folder)
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and p.name not in _NO_RUNS_BELOW):
        is_run = _is_run(path) or path.name in points
        found += [path] if is_run else _runs_below(path)
    return found + [folder / name for name in points if not (folder / name).is_dir()]


def _points_of_sweep(folder: Path) -> dict[str, str]:
    """Return the status of each point of a sweep by its folder's name; none of another folder."""
    try:
        points = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))["points"]
        return {
            str(point["name"]): ": ".join(str(point[k]) for k in ("status", "error") if point[k])
            for point in points
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _names(folders: list[Path]) -> list[str]:
    """Return the shortest ends of the paths that are all different."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _open(folder: Path, name: str) -> Run:
    """Read a run; what is wrong with its checkpoint is its problem, and no error."""
    if not _is_run(folder):  # a point of a sweep that never began to train
        status = _points_of_sweep(folder.parent)[folder.name]
        record = RunRecord(folder, folder.name, {}, {}, [], [], status)
        return Run(name, record, None, {}, "it has not trained")
    record = read_run(folder)
    checkpoint = record.best_checkpoint or record.last_checkpoint
    if checkpoint is None:
        return Run(name, record, None, record.config, "it has no checkpoint")
    problem, options = "", record.config
    try:
        read_adapter_config(checkpoint)
        if not options:
            state = read_state(checkpoint / STATE_FILE)
            model, data = (dict(state.get(key) or {}) for key in HYPERPARAMETERS)
            options = {"model": model, "data": data}
    except (UserError, FileNotFoundError) as error:
        problem = str(error)
    return Run(name, record, checkpoint, options, problem)
