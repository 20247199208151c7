"""What the audit keeps of each row: some numbers and hashes, never its text."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.tokens.tokenization import TokenizedRow

MOST_EXAMPLES = 5


@dataclass
class Tally:
    """How many records something is true of.

    Args:
        count: Their number.
        examples: The positions of the first ``MOST_EXAMPLES`` of them, with what to say of each.
        kind: The class of the error, if it is one.
    """

    count: int = 0
    examples: list[tuple[int, str]] = field(default_factory=list)
    kind: type[RowError] | None = None

    def add(self, position: int, text: str = "") -> None:
        """Count a record."""
        self.count += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append((position, text))

    def merge(self, other: "Tally", first: int) -> None:
        """Add the counts of the records that begin with position ``first``."""
        self.count += other.count
        missing = MOST_EXAMPLES - len(self.examples)
        self.examples += [(first + i, text) for i, text in other.examples[:missing]]


@dataclass
class Sample:
    """A row to show.

    Args:
        order: Rows of the smallest numbers are shown; pseudo-random.
        location: Its place, "file:line".
        sequences: Its tokens.
    """

    order: int
    location: str
    sequences: list[TokenizedRow]


@dataclass
class RowNotes:
    """Notes on the records of a source, in their order; (records,) each if nothing else is said.

    Args:
        sequences: int32, the sequences of tokens that a record became; 0 for one left out.
        lengths: int64, the tokens of the longest of them, before truncation; 0 if not known.
        row_hashes: uint64, equal for rows of equal tokens and weights.
        answer_hashes: uint64, equal for rows of equal answers.
        prompt_hashes: uint64, equal for rows of equal tokens before the last answer; 0 for none.
        answer_lengths: int32, tokens of the answer.
        loops: Whether the answer repeats itself.
        signatures: (records, BINS), of the text without system messages.
        odd: uint8, the kinds of odd characters, as bits.
        sequence_lengths: (sequences,) int64, tokens of each sequence.
        sequence_loss_tokens: (sequences,) int64, those of them that are in the loss.
        num_truncated: Number of the records of which tokens were cut off.
        errors: The records left out, by reason.
        findings: The records with findings, by finding.
        characters: Occurrences of each code point.
        roles: Messages of each role.
        answers: Texts of short answers by their hash.
        samples: Rows to choose from for showing, the first of the source among them.
    """

    sequences: NDArray[Any]
    lengths: NDArray[Any]
    row_hashes: NDArray[Any]
    answer_hashes: NDArray[Any]
    prompt_hashes: NDArray[Any]
    answer_lengths: NDArray[Any]
    loops: NDArray[Any]
    signatures: NDArray[Any]
    odd: NDArray[Any]
    sequence_lengths: NDArray[Any]
    sequence_loss_tokens: NDArray[Any]
    num_truncated: int = 0
    errors: dict[str, Tally] = field(default_factory=dict)
    findings: dict[Finding, Tally] = field(default_factory=dict)
    characters: Counter[int] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    answers: dict[int, str] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


def merged_notes(parts: Sequence[RowNotes], num_samples: int) -> RowNotes:
    """Return the notes on consecutive chunks as notes on all of them.

    Args:
        parts: At least one.
        num_samples: Number of rows to keep for showing: the first, and those of smallest order.
    """
    names = [
        f.name
        for f in dataclasses.fields(RowNotes)
        if f.default is dataclasses.MISSING is f.default_factory
    ]
    arrays: dict[str, Any] = {n: np.concatenate([getattr(p, n) for p in parts]) for n in names}
    whole = RowNotes(**arrays)
    first = 0
    for part in parts:
        for reason, tally in part.errors.items():
            whole.errors.setdefault(reason, Tally(kind=tally.kind)).merge(tally, first)
        for finding, tally in part.findings.items():
            whole.findings.setdefault(finding, Tally()).merge(tally, first)
        whole.num_truncated += part.num_truncated
        whole.characters.update(part.characters)
        whole.roles.update(part.roles)
        whole.answers |= part.answers
        rest = sorted([*whole.samples[1:], *part.samples], key=lambda sample: sample.order)
        kept = {sample.location: sample for sample in [*(whole.samples or part.samples)[:1], *rest]}
        whole.samples = list(kept.values())[:num_samples]
        first += len(part.sequences)
    return whole
