"""A text of a row before it is tokenized, with the spans of characters that are in the loss."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_lightning.data.records import Finding
from peft_lightning.data.tokens.marks import Span, shift, unmark

WeightedSpan = tuple[int, int, float]  # characters, end exclusive, and the weight of their tokens


@dataclass(frozen=True)
class RenderedRow:
    """A text of a row and the special tokens around it.

    Args:
        text: The text.
        spans: The spans of characters in the loss; of two that overlap the later counts.
        answers: Where answers are, in the loss or not: up to the start of each, the tokens are
            those that generation is given, and no token contains its end and what follows.
        literals: Spans whose special tokens are ordinary text.
        eos_weight: The weight of an EOS token that follows the text; None without EOS token.
        add_special_prefix: Whether the special tokens that the tokenizer puts before a text, such
            as BOS, precede it; a chat template prints them itself.
        findings: What the reader of the data should hear of.
        rest: What was cut off the text, because it is longer than rows may be anyway.
    """

    text: str
    spans: Sequence[WeightedSpan]
    answers: Sequence[Span] = ()
    literals: Sequence[Span] = ()
    eos_weight: float | None = None
    add_special_prefix: bool = False
    findings: tuple[Finding, ...] = ()
    rest: str = ""

    @classmethod
    def of_marked(
        cls,
        marked: str,
        spans: Sequence[WeightedSpan],
        answers: Sequence[Span],
        eos_weight: float | None = None,
        add_special_prefix: bool = False,
        findings: Sequence[Finding] = (),
    ) -> "RenderedRow":
        """Return a row of a text with private marks, which ``spans`` and ``answers`` count."""
        text, literals, marks = unmark(marked)
        if marks:
            spans = [(shift(start, marks), shift(end, marks), w) for start, end, w in spans]
            answers = [(shift(start, marks), shift(end, marks)) for start, end in answers]
        findings = tuple(findings)
        return cls(text, spans, answers, literals, eos_weight, add_special_prefix, findings)
