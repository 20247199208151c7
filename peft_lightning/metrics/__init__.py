"""Scores of answers by name: exact match, JSON match, ROUGE, BLEU and others.

An answer is a text that a model wrote, a reference the text that the row has in its place; every
score is in [0, 1], 1 for an answer like its reference. Start in ``scores.py``, where the names
are; the other files are one definition each. docs/metrics.md says what each cannot tell.
"""

from peft_lightning.metrics.scores import (
    LIKELIHOOD,
    METRICS,
    check_metrics,
    corpus_score,
    most_frequent_share,
    row_scores,
)

__all__ = [
    "LIKELIHOOD",
    "METRICS",
    "check_metrics",
    "corpus_score",
    "most_frequent_share",
    "row_scores",
]
