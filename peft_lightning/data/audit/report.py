"""The report of an audit: rows to show, counts and findings."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peft_lightning.data.audit.answer_findings import answer_counts, answer_findings
from peft_lightning.data.audit.characters import scripts
from peft_lightning.data.audit.corpus import Corpus, find_copies
from peft_lightning.data.audit.findings import AuditFinding, ordered
from peft_lightning.data.audit.lengths import length_counts
from peft_lightning.data.audit.reading import AuditedSource
from peft_lightning.data.audit.row_findings import row_findings
from peft_lightning.data.audit.row_notes import Sample
from peft_lightning.data.tokens.marked_tokens import MarkedRow, marked_tokens
from peft_lightning.data.tokens.tokenization import RowTokenizer


@dataclass(frozen=True)
class Report:
    """What an audit tells of the data of a run.

    Args:
        rows: Rows to show.
        counts: Numbers; see docs/audit.md.
        findings: What was found, the notes last.
        lines: What ``fit`` says of its splits.
    """

    rows: list[MarkedRow]
    counts: dict[str, Any]
    findings: list[AuditFinding]
    lines: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.is_note for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return rows, counts and findings as plain values."""
        return {
            "rows": [
                {"source": row.source, "tokens": [token.to_json() for token in row.tokens]}
                for row in self.rows
            ],
            "counts": self.counts,
            "findings": [finding.to_json() for finding in self.findings],
        }


def make_report(
    sources: Sequence[AuditedSource],
    splits: Mapping[str, Any],
    row_tokenizer: RowTokenizer,
    num_rows: int,
    lines: list[str],
) -> Report:
    """Return the report on the sources of a run.

    Args:
        sources: The sources, those of training first, each once.
        splits: The splits that ``fit`` would use.
        row_tokenizer: What the rows were tokenized with.
        num_rows: Number of rows to show.
        lines: What ``open_splits`` said.
    """
    corpus, tokenizer = Corpus(sources, splits), row_tokenizer.tokenizer
    exact, near = find_copies(corpus)
    findings = row_findings(corpus, exact, near, row_tokenizer.options.max_length)
    findings += answer_findings(corpus)
    samples = [
        MarkedRow(sample.location, marked_tokens(tokenizer, part.input_ids, part.loss_weights))
        for sample in _samples(splits, num_rows)
        for part in sample.sequences
    ]
    counts = _counts(corpus, splits, row_tokenizer.options.max_length)
    return Report(samples[:num_rows], counts, ordered(findings), lines)


def _samples(splits: Mapping[str, Any], number: int) -> list[Sample]:
    """Return the first row of training, and others of all its sources."""
    sources = dict.fromkeys(splits["train"].dataset.datasets if splits else [])
    samples = [sample for source in sources for sample in source.notes.samples]
    rest = sorted(samples[1:], key=lambda sample: sample.order)
    return [*samples[:1], *rest][:number]


def _counts(corpus: Corpus, splits: Mapping[str, Any], max_length: int) -> dict[str, Any]:
    notes = [source.notes for source in corpus.sources]
    sequences, lengths = corpus.array("sequences"), corpus.array("lengths")
    reasons: Counter[str] = Counter()
    characters: Counter[int] = Counter()
    roles: Counter[str] = Counter()
    for note in notes:
        reasons.update({reason: tally.count for reason, tally in note.errors.items()})
        characters.update(note.characters)
        roles.update(note.roles)
    kept = int((sequences > 0).sum())
    per_row = np.bincount(sequences[sequences > 0], minlength=2)
    tokens = int(corpus.array("sequence_lengths").sum())
    loss_tokens = int(corpus.array("sequence_loss_tokens").sum())
    return {
        "read": len(sequences),
        "kept": kept,
        "truncated": sum(note.num_truncated for note in notes),
        "left_out": dict(reasons.most_common()),
        "tokens": tokens,
        "tokens_in_loss": loss_tokens,
        "share_in_loss": _share(loss_tokens, tokens),
        "sequences": int(sequences.sum()),
        "sequences_per_row": {str(n): int(k) for n, k in enumerate(per_row) if n and k},
        "sources": [_source_counts(source) for source in corpus.sources],
        "splits": {name: _split_counts(split) for name, split in splits.items()},
        "lengths": length_counts(lengths[lengths > 0], max_length),
        "answers": answer_counts(corpus),
        "roles": dict(roles.most_common()),
        "scripts": {name: round(share, 6) for name, share in scripts(characters).items()},
    }


def _source_counts(source: AuditedSource) -> dict[str, Any]:
    return {
        "source": source.source.name,
        "files": [str(file.path) for file in source.source.files],
        "format": str(source.format),
        "read": len(source.notes.sequences),
        "kept": int((source.notes.sequences > 0).sum()),
    }


def _split_counts(split: Any) -> dict[str, Any]:
    sizes = split.sizes
    return {
        "sequences": sizes["rows"],
        "tokens": sizes["tokens"],
        "tokens_in_loss": sizes["loss_tokens"],
        "share_in_loss": _share(sizes["loss_tokens"], sizes["tokens"]),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
