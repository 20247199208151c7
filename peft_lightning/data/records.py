"""Records, the errors of those that cannot be used, and their counts."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from peft_lightning.messages import UserError

MAX_ROW_SIZE = 16 * 2**20  # bytes or characters; a longer row is a broken file, not training text

Record = dict[str, Any]


class RowError(UserError):
    """A row that cannot be used.

    Args:
        reason: What is wrong; rows are counted by it.
        detail: More about this row, for the message.
        length: Its number of tokens, if that is the reason.
    """

    def __init__(self, reason: str, detail: str = "", length: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.length = length


class DroppedRowError(RowError):
    """A row that an option or the row itself leaves out: counted, never an error."""


class LongRowError(RowError):
    """A row longer than ``max_length`` with ``truncation`` "error": always an error."""


LocatedRecord = tuple[Record | RowError, str]  # with its location, "file:line"


@dataclass(frozen=True)
class Finding:
    """Something about a row that its reader should hear of, although the row is used.

    Args:
        kind: What it is, such as "unused column"; findings are counted by kind and subject.
        subject: What it is about, such as the column's name; empty if the kind says all.
    """

    kind: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}".rstrip()


@dataclass
class Findings:
    """Counts of findings, each with the location of its first example.

    Args:
        counts: Rows with each finding.
        examples: The location ("file:line") of the first of them.
    """

    counts: Counter[Finding] = field(default_factory=Counter)
    examples: dict[Finding, str] = field(default_factory=dict)

    def add(self, findings: Iterable[Finding], location: str) -> None:
        """Count the findings of one row."""
        for finding in dict.fromkeys(findings):
            self.counts[finding] += 1
            self.examples.setdefault(finding, location)

    def to_json(self) -> list[dict[str, Any]]:
        """Return kind, subject, count and example of each, the most frequent first."""
        return [
            {**asdict(f), "count": n, "example": self.examples[f]}
            for f, n in self.counts.most_common()
        ]


@dataclass
class RowCounts:
    """Counts of the rows read, kept and left out; always ``read == kept + reasons.total()``.

    Args:
        read: Rows read from the source.
        kept: Rows that are used.
        truncated: Kept rows that were truncated.
        sequences: Sequences of tokens that the kept rows became, at least one each.
        reasons: Rows left out, by reason.
        too_long: Numbers of tokens of the rows left out because they are too long.
        longest: Number of tokens of the longest row that is used, before truncation.
    """

    read: int = 0
    kept: int = 0
    truncated: int = 0
    sequences: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    too_long: list[int] = field(default_factory=list)
    longest: int = 0

    def leave_out(self, error: RowError) -> None:
        """Count a row that is not used."""
        self.reasons[error.reason] += 1
        if error.length is not None:
            self.too_long.append(error.length)

    def __str__(self) -> str:
        assert self.read == self.kept + self.reasons.total(), self
        truncated = f" ({self.truncated} of them truncated)" if self.truncated else ""
        left_out = "".join(f" + {reason}: {n}" for reason, n in self.reasons.most_common())
        several = f" as {self.sequences} sequences" if self.sequences > self.kept else ""
        return f"{self.read} read = {self.kept} kept{several}{truncated}{left_out}{self._advice()}"

    def _advice(self) -> str:
        """Return which ``max_length`` would keep the rows that are too long."""
        if not self.too_long:
            return ""
        lengths = sorted(self.too_long)
        advice = f"; max_length {lengths[-1]} would keep all rows"
        most = lengths[round(0.9 * (len(lengths) - 1))]
        return advice if most == lengths[-1] else f"{advice}, {most} 90 % of those too long"
