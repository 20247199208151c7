"""BLEU (Papineni et al. 2002) and chrF (Popović 2015) by sacrebleu, which may be missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from peft_lightning.messages import UserError


def require_sacrebleu(name: str) -> None:
    """Raise UserError if the metric ``name`` cannot be computed here."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise UserError(
            f"{name} is computed by sacrebleu, which is not installed:"
            " pip install 'peft_lightning[metrics]'"
        )


def sacrebleu_of_rows(name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return sacrebleu's score of each answer as a sentence of its own, divided by 100."""
    metric = _metric(name, sentences=True)
    pairs = zip(answers, references, strict=True)
    return [_share(metric.sentence_score(answer, [reference])) for answer, reference in pairs]


def sacrebleu_of_corpus(name: str, answers: Sequence[str], references: Sequence[str]) -> float:
    """Return sacrebleu's score of all answers as one corpus, divided by 100."""
    return _share(_metric(name).corpus_score(list(answers), [list(references)]))


def _metric(name: str, sentences: bool = False) -> Any:
    """Return sacrebleu's metric with its defaults: its tokenizer 13a, chrF2 of 6 characters.

    A sentence has often no n-gram of four words: its BLEU is of the orders that it has, as
    sacrebleu's own sentence BLEU.
    """
    from sacrebleu.metrics import BLEU, CHRF

    # force: no warning that a text looks tokenized; it changes no number
    return CHRF() if name == "chrf" else BLEU(effective_order=sentences, force=True)


def _share(score: Any) -> float:
    return min(max(float(score.score) / 100, 0.0), 1.0)  # 100.00000000000004 of equal texts
