"""What the audit finds, and which of it makes a data set unclean."""

from dataclasses import dataclass, field
from typing import Any

from peft_lightning.data.audit.turn_order import ODD_ORDER

NOTED = {  # findings of the reader that an option has asked for, or that change nothing
    "unused column",
    ODD_ORDER,
    "answer that ends with the special token",
    "object written as JSON",
    "system message left out",
    "thought left out",
    "turns after the last answer left out",
}


@dataclass(frozen=True)
class AuditFinding:
    """Something that was found in several rows.

    Args:
        kind: What it is.
        count: Number of rows.
        example: The location of the first of them, "file:line"; with another that it is like.
        detail: What to say of it.
        is_note: Whether it is only worth a look, and the data are clean nevertheless.
        examples: Further locations, each with what to say of it.
    """

    kind: str
    count: int
    example: str
    detail: str = ""
    is_note: bool = False
    examples: list[tuple[str, str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return kind, count and example, and more where there is more."""
        found: dict[str, Any] = {"kind": self.kind, "count": self.count, "example": self.example}
        found["note"] = self.is_note
        if self.detail:
            found["detail"] = self.detail
        if self.examples:
            found["examples"] = [{"source": place, "detail": text} for place, text in self.examples]
        return found


def ordered(findings: list[AuditFinding]) -> list[AuditFinding]:
    """Return the findings before the notes, each the most frequent first."""
    return sorted(findings, key=lambda finding: (finding.is_note, -finding.count))
