"""The metrics by name: the score of each row, and of all rows together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from peft_lightning.messages import UserError, did_you_mean
from peft_lightning.metrics.bleu_chrf import (
    require_sacrebleu,
    sacrebleu_of_corpus,
    sacrebleu_of_rows,
)
from peft_lightning.metrics.matches import contains, exact_match, json_match
from peft_lightning.metrics.rouge import rouge_f1
from peft_lightning.metrics.token_f1 import token_f1

_OF_A_ROW: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "json_match": json_match,
    "contains": contains,
    "f1": token_f1,
    "rouge1": lambda answer, reference: rouge_f1("rouge1", answer, reference),
    "rouge2": lambda answer, reference: rouge_f1("rouge2", answer, reference),
    "rougeL": lambda answer, reference: rouge_f1("rougeL", answer, reference),
}
_OF_A_CORPUS = ("bleu", "chrf")  # whose score is not the mean of the rows' scores
METRICS = (*_OF_A_ROW, *_OF_A_CORPUS)
LIKELIHOOD = "likelihood_accuracy"  # needs the model: training and validation compute it


def check_metrics(names: Sequence[str]) -> None:
    """Check the names of metrics, and that what they need is installed.

    Args:
        names: Of ``METRICS``, or ``likelihood_accuracy``.

    Raises:
        UserError: If one is not known, or sacrebleu is needed and not installed.
    """
    known = (*METRICS, LIKELIHOOD)
    if wrong := [name for name in names if name not in known]:
        raise UserError(
            f"there is no metric {', '.join(map(str, wrong))}; there are {', '.join(known)}"
            f"{did_you_mean(map(str, wrong), known)}"
        )
    for name in names:
        if name in _OF_A_CORPUS:
            require_sacrebleu(name)


def row_scores(name: str, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the score of each row, in [0, 1].

    BLEU and chrF of a row are those of a sentence as sacrebleu defines them, divided by 100.

    Args:
        name: One of ``METRICS``.
        answers: What a model wrote.
        references: What the rows have in its place, as many.

    Raises:
        UserError: If there is no such metric, it needs the model, or the numbers differ.
    """
    _check(name, answers, references)
    if name in _OF_A_CORPUS:
        return sacrebleu_of_rows(name, answers, references)
    score = _OF_A_ROW[name]
    return [score(*pair) for pair in zip(answers, references, strict=True)]


def corpus_score(name: str, answers: Sequence[str], references: Sequence[str]) -> float:
    """Return the score of all rows together, in [0, 1]; nan of no rows.

    It is the mean of the rows' scores; BLEU and chrF gather the n-grams of all rows first.

    Args:
        name: One of ``METRICS``.
        answers: What a model wrote.
        references: What the rows have in its place, as many.

    Raises:
        UserError: If there is no such metric, it needs the model, or the numbers differ.
    """
    _check(name, answers, references)
    if not answers:
        return float("nan")
    if name in _OF_A_CORPUS:
        return sacrebleu_of_corpus(name, answers, references)
    scores = row_scores(name, answers, references)
    return sum(scores) / len(scores)


def most_frequent_share(answers: Sequence[str]) -> tuple[str, float]:
    """Return the most frequent answer, without surrounding white space, and its share of all.

    A share near 1 says that the model answers alike whatever it is asked. Of several that are
    equally frequent it is the first. Without answers it is ``("", nan)``.
    """
    if not answers:
        return "", float("nan")
    ((answer, number),) = Counter(answer.strip() for answer in answers).most_common(1)
    return answer, number / len(answers)


def _check(name: str, answers: Sequence[str], references: Sequence[str]) -> None:
    check_metrics([name])
    if name == LIKELIHOOD:
        raise UserError(f"{name} compares likelihoods, not texts: it is a metric of model.metrics")
    if len(answers) != len(references):
        raise UserError(f"{len(answers)} answers cannot be scored by {len(references)} references")
