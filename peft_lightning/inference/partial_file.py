"""Answers of an interrupted command, kept in a partial file until all of them are made."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peft_lightning.files import atomic_text, sha256_of_json, writing
from peft_lightning.process.signals import STOP


class PartialAnswers:
    """Keeps answers in ``<output>.part``, and reports that when a signal stops the command.

    Args:
        output: The file to write at the end; None keeps nothing.
        run: Hash of everything that the answers depend on. The answers in a partial file with
            another hash are discarded.
        total: Number of answers to make.

    Attributes:
        texts: The answers so far, by index.
        cut: The indices of those that ended because they were as long as allowed.
    """

    def __init__(self, output: str | Path | None, run: str, total: int) -> None:
        self.output = None if output is None else Path(output)
        self.run, self.total = run, total
        self.texts: dict[int, str] = {}
        self.cut: set[int] = set()
        self._file: Any = None

    def open(self) -> PartialAnswers:
        """Read the answers of an interrupted run. Call ``close`` on the object returned."""
        STOP.kept = self._kept
        if self.output is None:
            return self
        path = self._part
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if lines and lines[0] == self.run:
            for line in lines[1:-1]:  # the last one is empty, or a line cut off by a crash
                texts, cut = json.loads(line)
                self.texts |= {int(k): text for k, text in texts.items()}
                self.cut.update(cut)
            print(f"{path}: {len(self.texts)} answers are there already", file=sys.stderr)
        atomic_text(path, f"{self.run}\n{_line(self.texts, self.cut)}")
        self._file = path.open("a", encoding="utf-8")
        return self

    @property
    def _part(self) -> Path:
        assert self.output is not None
        return self.output.with_name(self.output.name + ".part")

    def _kept(self) -> str:
        """Return where the answers so far are, for the message of a stopped command."""
        done = f"; {len(self.texts)} of {self.total} answers"
        if self.output is None:
            return f"{done} were made, and none is kept without --output"
        return f"{done} are in {self._part}, the same command goes on from them"

    def add(self, texts: dict[int, str], cut: Collection[int] = ()) -> None:
        """Add answers and write them to the partial file.

        Args:
            texts: The answers by index.
            cut: The indices of those that ended because they were as long as allowed.
        """
        with STOP.held():
            self.texts |= texts
            self.cut.update(cut)
            if self._file is not None:
                self._write(texts, cut)

    def finish(self, lines: Iterable[str]) -> None:
        """Write ``lines`` to the output file and remove the partial file."""
        if self.output is None:
            return
        with STOP.held():
            atomic_text(self.output, "".join(f"{line}\n" for line in lines))
            self._part.unlink()
            STOP.finish()

    def close(self) -> None:
        """Close the partial file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> PartialAnswers:
        return self.open()

    def __exit__(self, *args: object) -> None:
        self.close()

    def _write(self, texts: dict[int, str], cut: Collection[int]) -> None:
        with writing(self._part):
            self._file.write(_line(texts, cut))
            self._file.flush()


def _line(texts: dict[int, str], cut: Collection[int]) -> str:
    return json.dumps([texts, sorted(cut)]) + "\n"


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a hash of each tensor's values."""
    return {
        name: hashlib.sha256(tensor.float().cpu().numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }


def run_hash(*facts: Any) -> str:
    """Return a hash of ``facts``, everything that the answers depend on, as JSON."""
    return sha256_of_json(facts)
