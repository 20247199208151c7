"""How a case of the table in docs/lightning.md is written, and how the table is printed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch

from peft_lightning import CausalLMModule

EXACT, WORKS, REFUSED = "exact on resume", "works", "refused"
Check = Callable[[L.Trainer], bool]


class Make:
    """A class and its arguments: written in Python and in YAML, and made anew for each run."""

    def __init__(self, kind: Any, **arguments: Any) -> None:
        self.kind, self.arguments = kind, arguments

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in self.arguments.items())
        return f"{self.kind.__name__}({given})"

    def make(self) -> Any:
        return self.kind(**made(self.arguments))

    def in_yaml(self) -> dict[str, Any]:
        path = f"{self.kind.__module__}.{self.kind.__qualname__}"
        return {"class_path": path, "init_args": in_yaml(self.arguments)}


def made(value: Any) -> Any:
    """Return ``value`` with all in it that is to be made."""
    return _each(value, lambda part: part.make())


def in_yaml(value: Any) -> Any:
    """Return ``value`` as a YAML file has it."""
    return _each(value, lambda part: part.in_yaml())


def _each(value: Any, change: Callable[[Make], Any]) -> Any:
    if isinstance(value, Make):
        return change(value)
    if isinstance(value, dict):
        return {name: _each(part, change) for name, part in value.items()}
    return [_each(part, change) for part in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """Return a value as Python has it, a function by a placeholder."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return "..." if callable(value) and not isinstance(value, Make) else repr(value)


@dataclass(frozen=True)
class Case:
    """Options of a Trainer, with which a run is made, and made again from its checkpoint.

    Attributes:
        options: As they are written in Python and in YAML.
        verdict: EXACT, WORKS or REFUSED.
        note: Why it is refused or not exact, or what to know.
        error: Pattern of the message if it is refused.
        needs: What a machine has to have to not refuse it, a key of ``HAS``.
        steps: Optimizer steps of the run.
        save_at: The step after which the checkpoint is saved.
        yaml: Whether it can be written in YAML.
        equal: Whether a run from YAML ends with the same weights.
        did: Whether a finished run has done what was asked for.
        module: Class of the module.
    """

    options: dict[str, Any]
    verdict: str = EXACT
    note: str = ""
    error: str = ""
    needs: str = ""
    steps: int = 6
    save_at: int = 4
    yaml: bool = True
    equal: bool = True
    did: Check = lambda trainer: True
    module: type[CausalLMModule] = CausalLMModule

    def written(self) -> str:
        return ", ".join(f"{name}={shown(value)}" for name, value in self.options.items())


@dataclass(frozen=True)
class Script:
    """Some lines of Python, which assert what is to be true.

    Attributes:
        run: Called with the base, the rows and an empty folder.
        verdict: As of ``Case``.
        note: What to know.
        text: The line that matters, for the table.
    """

    run: Callable[[Path, Path, Path], None]
    verdict: str = WORKS
    note: str = ""
    text: str = ""
    needs: str = ""
    yaml: bool = False

    def written(self) -> str:
        return self.text


@dataclass(frozen=True)
class Elsewhere:
    """What another file tests: ``test``, in ``file`` below tests/."""

    file: str
    test: str
    verdict: str = WORKS
    note: str = ""
    text: str = ""
    needs: str = ""
    yaml: bool = field(default=False, init=False)  # not compared with Python there

    def written(self) -> str:
        return self.text


Row = Case | Script | Elsewhere


def _installed(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is not None


HAS: dict[str, Callable[[], bool]] = {
    "a GPU": torch.cuda.is_available,
    "a Mac": torch.backends.mps.is_available,
    "torch_xla": _installed("torch_xla"),
    "transformer_engine": _installed("transformer_engine"),
    "mpi4py": _installed("mpi4py"),
    "litmodels": _installed("litmodels"),
    "litlogger": _installed("litlogger"),
    "a job of LSF": lambda: False,
}


def table(sections: dict[str, dict[str, Row]]) -> str:
    """Return the sections as Markdown."""
    lines = []
    for title, rows in sections.items():
        lines += [f"### {title}", "", "| | as written | | YAML | |", "|---|---|---|---|---|"]
        lines += [_line(name, row) for name, row in rows.items()]
        lines.append("")
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    written = f"`{row.written()}`" if row.written() else ""
    verdict = f"needs {row.needs}" if row.needs else row.verdict
    note = row.note
    if isinstance(row, Elsewhere):
        link = f"[{Path(row.file).name}](../tests/{row.file})"
        note = f"{note}; {link}" if note else link
    names = ", ".join(f"`{part}`" for part in name.split(", "))
    cells = [names, written, verdict, "yes" if row.yaml else "", note]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
