"""Records, the errors of those that cannot be used, and their counts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from peft_lightning.messages import UserError

MAX_ROW_SIZE = 16 * 2**20  # bytes or characters; a longer row is a broken file, not training text

Record = dict[str, Any]


class RowError(UserError):
    """A row that cannot be used.

    Args:
        reason: What is wrong; rows are counted by it.
        detail: More about this row, for the message.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class DroppedRowError(RowError):
    """A row that ``truncation`` leaves out: counted, never an error."""


class LongRowError(RowError):
    """A row longer than ``max_length`` with ``truncation`` "error": always an error."""


LocatedRecord = tuple[Record | RowError, str]  # with its location, "file:line"


@dataclass
class RowCounts:
    """Counts of the rows read, kept and left out; always ``read == kept + reasons.total()``.

    Args:
        read: Rows read from the source.
        kept: Rows that are used.
        truncated: Kept rows that were truncated.
        reasons: Rows left out, by reason.
    """

    read: int = 0
    kept: int = 0
    truncated: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        assert self.read == self.kept + self.reasons.total(), self
        truncated = f" ({self.truncated} of them truncated)" if self.truncated else ""
        left_out = "".join(f" + {reason}: {n}" for reason, n in self.reasons.most_common())
        return f"{self.read} read = {self.kept} kept{truncated}{left_out}"
