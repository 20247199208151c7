"""What is evaluated, one model at a time, and what is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft_lightning.experiments.compare.row_losses import RowLosses
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.experiments.compare.validation_rows import ValidationRows


@dataclass(frozen=True)
class Evaluated:
    """What a model makes of the rows and of the questions.

    Args:
        losses: The loss of each row; None if it could not be evaluated.
        answers: Its greedy answers to the questions.
        general: The loss of each passage of general text; None if that was not asked for.
        problem: Why it could not be evaluated; "" if it was.
    """

    losses: RowLosses | None = None
    answers: tuple[str, ...] = ()
    general: RowLosses | None = None
    problem: str = ""


@dataclass(frozen=True)
class Task:
    """One model to evaluate.

    Args:
        run: The run; None for the untouched base.
        rows: The validation rows, with the run's own tokenizer.
        folders: Where its results are kept.
        checkpoint: What tells its weights from others.
    """

    run: Run | None
    rows: ValidationRows
    folders: tuple[Path, ...]
    checkpoint: str

    @property
    def name(self) -> str | None:
        """The name of the run; None for the base."""
        return self.run.name if self.run else None
