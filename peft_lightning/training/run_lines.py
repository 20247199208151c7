"""A file of JSON lines in a run's folder: of one run, whatever interrupts it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.training.run_identity import run_name, run_of


class RunLines:
    """Appends JSON objects, each as a whole line, to a file that a resumed run continues.

    A process that is killed leaves at most one half line, which the next one removes. What a full
    disk refuses is kept and written as soon as there is room: training goes on.

    The first process writes; trial runs (``fast_dev_run``) and ``barebones`` ones write nothing.

    Args:
        name: The file's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._path: Path | None = None
        self._candidates: list[Path] = []  # files of this run
        self._size = 0  # bytes that are in the file for good
        self._pending = b""
        self._has_failed = False

    def find(self, trainer: Any) -> None:
        """Find the lines that this run has written; for ``on_fit_start``, before it is named anew.

        They are in its folder, or beside the checkpoint that it continues from in another folder.
        """
        self._path, self._pending, self._has_failed = None, b"", False
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.barebones:
            return
        root = Path(trainer.default_root_dir)
        self._path = root / self.name
        folders = [root]
        if trainer.ckpt_path:
            folders.append(Path(trainer.ckpt_path).resolve().parent.parent)
        run = run_name(trainer)
        self._candidates = [f / self.name for f in folders if run is not None and run_of(f) == run]

    def begin(self, keeps: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the lines from the first one on that the run is to write again.

        Args:
            keeps: Whether a line was written before the moment that the run continues from.
        """
        if self._path is None:
            return
        kept = [_kept(file, keeps) for file in self._candidates]
        best = max(range(len(kept)), key=lambda i: len(kept[i]), default=None)
        is_here = best is not None and self._candidates[best] == self._path
        if best is not None and not is_here:
            self._pending = kept[best]
        self._size = len(kept[best]) if best is not None and is_here else 0
        if self._pending or self._path.exists():
            self._write()

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; values that are no numbers in JSON, nan and infinity, are null."""
        if self._path is not None:
            text = json.dumps(_finite(line), ensure_ascii=False, allow_nan=False)
            self._pending += text.encode() + b"\n"
            self._write()

    def _write(self) -> None:
        """Write what is pending behind what is in the file for good."""
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._size = min(self._size, os.fstat(descriptor).st_size)  # if somebody cut it
                os.ftruncate(descriptor, self._size)
                while self._pending:
                    count = os.pwrite(descriptor, self._pending, self._size)
                    self._size, self._pending = self._size + count, self._pending[count:]
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                rank_zero_info(
                    f"{self._path} cannot be written: {error.strerror}; training goes on, and what "
                    "is missing is written when that is possible"
                )


def _kept(file: Path, keeps: Callable[[dict[str, Any]], bool]) -> bytes:
    """Return the whole lines before the first that is not kept, or is damaged."""
    try:
        data = file.read_bytes()
    except OSError:
        return b""
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or not keeps(json.loads(line)):
                break
        except (ValueError, KeyError, TypeError):
            break
        end += len(line)
    return data[:end]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value
