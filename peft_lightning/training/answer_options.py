"""The options of a module about the answers that validation and test score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peft_lightning.messages import UserError, check_choice
from peft_lightning.metrics import LIKELIHOOD, check_metrics

MOST_LABELS = 100  # each row is computed once for each label


@dataclass(frozen=True)
class AnswerOptions:
    """What validation and test score of the answers to their rows.

    Args:
        metrics: Names of ``peft_lightning.metrics``; none for no answers.
        rows: How many rows of each source are answered; 0 for all.
        labels: The labels that ``likelihood_accuracy`` compares; None for those of the rows.
        label_score: Of a label: the sum of the log-likelihoods of its tokens, or their mean.
    """

    metrics: tuple[str, ...] = ()
    rows: int = 100
    labels: tuple[str, ...] | None = None
    label_score: str = "sum"

    @property
    def of_texts(self) -> list[str]:
        """The metrics that score a text that is generated."""
        return [name for name in self.metrics if name != LIKELIHOOD]

    @property
    def of_labels(self) -> bool:
        """Whether the likelihoods of labels are compared."""
        return LIKELIHOOD in self.metrics


def answer_options(
    metrics: Sequence[str] | None, rows: int, labels: Sequence[str] | None, label_score: str
) -> AnswerOptions:
    """Return the options of ``CausalLMModule`` about answers.

    Raises:
        UserError: If a metric is not known or cannot be computed here, or another option cannot be.
    """
    for option, value in (("metrics", metrics), ("labels", labels)):
        if isinstance(value, str):
            raise UserError(f"model.{option} is a list of names, got {value!r}: give [{value!r}]")
    names = tuple(dict.fromkeys(metrics or ()))
    check_metrics(names)
    check_choice("model.label_score", label_score, ("sum", "mean"))
    if rows < 0:
        raise UserError(f"model.metric_rows must be 0, for all rows, or more, got {rows}")
    if labels is None:
        return AnswerOptions(names, rows, None, label_score)
    if LIKELIHOOD not in names:
        raise UserError(f"model.labels are for {LIKELIHOOD}: add it to model.metrics")
    own = tuple(dict.fromkeys(label.strip() for label in labels))
    check_labels(own, "model.labels")
    return AnswerOptions(names, rows, own, label_score)


def check_labels(labels: Sequence[str], what: str) -> None:
    """Raise UserError unless there are labels to compare, and not too many.

    Args:
        labels: The labels, each once.
        what: Where they are from, for the message.
    """
    if len(labels) < 2:
        raise UserError(
            f"{LIKELIHOOD} compares two labels or more, and {what} has {len(labels)}: give all of "
            "them as model.labels"
        )
    if len(labels) > MOST_LABELS:
        raise UserError(
            f"{LIKELIHOOD} is for classification, and {what} has {len(labels)} different answers, "
            f"more than {MOST_LABELS}: use exact_match, or give model.labels"
        )
