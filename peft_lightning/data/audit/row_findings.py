"""Findings about whole rows: errors, copies, odd characters, and what the reader has found."""

import numpy as np

from peft_lightning.data.audit.characters import KINDS, MOJIBAKE
from peft_lightning.data.audit.corpus import Copies, Corpus
from peft_lightning.data.audit.findings import NOTED, AuditFinding
from peft_lightning.data.audit.row_notes import Tally
from peft_lightning.data.records import DroppedRowError, Finding

NOTED_CHARACTERS = {"invisible character", "private use character"}


def row_findings(
    corpus: Corpus, exact: Copies, near: Copies, max_length: int
) -> list[AuditFinding]:
    """Return the findings about rows.

    Args:
        corpus: The records.
        exact: Exact duplicates.
        near: Near duplicates.
        max_length: Maximum number of tokens of a row.
    """
    return [
        *_left_out(corpus),
        *_cut(corpus, max_length),
        *_copies(corpus, exact, near),
        *_odd_characters(corpus),
        *_of_the_reader(corpus),
    ]


def _left_out(corpus: Corpus) -> list[AuditFinding]:
    found = []
    for reason, tally in _merged(corpus, "errors").items():
        is_choice = tally.kind is DroppedRowError and "max_length" not in str(reason)
        (place, detail), *_ = tally.examples
        found.append(
            AuditFinding(
                f"row left out: {reason}",
                tally.count,
                corpus.location(place),
                detail,
                is_note=is_choice,  # the row or an option says so
                examples=[(corpus.location(i), text) for i, text in tally.examples],
            )
        )
    return found


def _cut(corpus: Corpus, max_length: int) -> list[AuditFinding]:
    long = np.flatnonzero(corpus.is_used & (corpus.array("lengths") > max_length))
    if not len(long):
        return []
    longest = int(corpus.array("lengths")[long].max())
    detail = f"{longest} tokens would keep all rows whole"
    kind = f"row cut at max_length {max_length}"
    return [AuditFinding(kind, len(long), corpus.location(int(long[0])), detail)]


def _copies(corpus: Corpus, exact: Copies, near: Copies) -> list[AuditFinding]:
    training = corpus.in_split.get("train", corpus.is_used)
    validation = corpus.in_split.get("val", np.zeros_like(training)) & ~training
    found = []
    for kind, copies, whose, is_note in (
        ("duplicate in training", exact, (training, training), False),
        ("near duplicate in training", near, (training, training), True),
        ("validation row that is trained on", exact, (validation, training), False),
        ("validation row that is nearly one of training", near, (validation, training), False),
        ("duplicate in validation", exact, (validation, validation), True),
    ):
        some = copies.within(*whose)
        if len(some.copies):
            places = [
                (corpus.location(int(copy)), corpus.location(int(original)))
                for copy, original in zip(some.copies[:5], some.originals[:5], strict=True)
            ]
            found.append(
                AuditFinding(
                    kind,
                    len(some.copies),
                    places[0][0],
                    f"like {places[0][1]}",
                    is_note,
                    [(copy, f"like {original}") for copy, original in places],
                )
            )
    return found


def _odd_characters(corpus: Corpus) -> list[AuditFinding]:
    odd = corpus.array("odd")
    found = []
    for bit, kind in enumerate(KINDS):
        rows = np.flatnonzero(odd & (1 << bit))
        if len(rows):
            detail = "UTF-8 that was read in another encoding" if kind == MOJIBAKE else ""
            place = corpus.location(int(rows[0]))
            found.append(AuditFinding(kind, len(rows), place, detail, kind in NOTED_CHARACTERS))
    return found


def _of_the_reader(corpus: Corpus) -> list[AuditFinding]:
    return [
        AuditFinding(
            str(finding),
            tally.count,
            corpus.location(tally.examples[0][0]),
            is_note=finding.kind in NOTED,
        )
        for finding, tally in _merged(corpus, "findings").items()
        if isinstance(finding, Finding)
    ]


def _merged(corpus: Corpus, name: str) -> dict[object, Tally]:
    """Return the tallies of all sources, at the indices of the corpus."""
    merged: dict[object, Tally] = {}
    start = 0
    for source in corpus.sources:
        for key, tally in getattr(source.notes, name).items():
            merged.setdefault(key, Tally(kind=tally.kind)).merge(tally, start)
        start += len(source.notes.sequences)
    return merged
