"""What was evaluated is kept in the runs' folders: by checkpoint, rows and options."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from peft_lightning.experiments.compare.row_losses import RowLosses
from peft_lightning.files import atomic_text, sha256_of_json

FOLDER = "evaluation"
VERSION = 1  # another one makes all results anew


def kept(folders: Iterable[Path], facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a result that was kept in one of the runs' folders; None if none was."""
    for folder in folders:
        with suppress(OSError, ValueError):
            found = json.loads(_file(folder, facts).read_text(encoding="utf-8"))
            if found["facts"] == _facts(facts):
                return dict(found["result"])
    return None


def keep(folders: Iterable[Path], facts: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Keep a result in the runs' folders; those that cannot be written go without."""
    text = json.dumps({"facts": _facts(facts), "result": dict(result)})
    for folder in folders:
        with suppress(OSError):
            atomic_text(_file(folder, facts), text + "\n")


def losses_of(result: Mapping[str, Any]) -> RowLosses:
    """Return the losses that ``result_of`` has made plain."""
    return RowLosses(*(np.asarray(result[name]) for name in ("nll", "tokens", "correct")))


def result_of(losses: RowLosses) -> dict[str, Any]:
    """Return losses as plain values."""
    return {name: getattr(losses, name).tolist() for name in ("nll", "tokens", "correct")}


def _facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps({"version": VERSION, **facts})))


def _file(folder: Path, facts: Mapping[str, Any]) -> Path:
    return folder / FOLDER / f"{facts['what']}-{sha256_of_json(_facts(facts))[:16]}.json"
