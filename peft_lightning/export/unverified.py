"""The mark on an exported model that has not been verified, or has failed the verification."""

from __future__ import annotations

from pathlib import Path

from peft_lightning.export.verify import Comparison
from peft_lightning.files import atomic_text
from peft_lightning.messages import RunError, UserError
from peft_lightning.process.signals import STOP

UNVERIFIED = "UNVERIFIED"
UNFINISHED = "the verification was not finished\n"  # content of the mark until it is


def require_max_logit_difference(max_logit_difference: float | None) -> None:
    """Raise UserError if the largest allowed difference of a logit is not above 0."""
    if max_logit_difference is not None and not max_logit_difference > 0:
        raise UserError(f"max_logit_difference must be above 0, got {max_logit_difference:g}")


def tell_if_stopped(out: str, mark: Path | None = None) -> None:
    """Have a stopped command say what there is of its output, and how to go on.

    Args:
        out: The file or folder that it writes, as a whole.
        mark: File that marks it as unverified, if it is verified.
    """

    def kept() -> str:
        if mark is not None and mark.is_file() and Path(out).exists():
            return f"; {out} is written and not verified: the same command makes it anew"
        if Path(out).exists():
            return f"; {out} is whole"
        return f"; nothing of {out} is left: the same command makes it anew"

    STOP.kept = kept


def settle(mark: Path, out: str, found: Comparison, max_logit_difference: float) -> None:
    """Print the result of a verification, and remove the mark if the model passes.

    Args:
        mark: File that marks the model as unverified.
        out: What was written, for the error.
        found: Result of the comparison.
        max_logit_difference: Largest allowed difference of a logit, in standard deviations.

    Raises:
        RunError: If the model differs from the base and its adapter; ``mark`` then gives the
            reason.
    """
    print(f"verified on {found}")
    if problem := found.problem(max_logit_difference):
        atomic_text(mark, f"{problem}\n{found}\n")
        raise RunError(f"{out} is not what was trained: {problem}")
    mark.unlink()
