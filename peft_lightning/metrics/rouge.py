"""ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) by torchmetrics, over words of any script."""

from __future__ import annotations

from peft_lightning.metrics.words import words


def rouge_f1(key: str, answer: str, reference: str) -> float:
    """Return the F1 of n-grams that both have, or of their longest common subsequence.

    Words are not stemmed. Without a word in one of the texts it is 0.

    Args:
        key: rouge1, rouge2 or rougeL.
        answer: What a model wrote.
        reference: What the row has in its place.
    """
    from torchmetrics.functional.text import rouge_score  # with torch: only where it is needed

    scores = rouge_score(
        answer, reference, rouge_keys=key, normalizer=str, tokenizer=words, accumulate="best"
    )
    return float(scores[f"{key}_fmeasure"])
