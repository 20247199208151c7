"""Rows that are tokenized without a chat template: plain text, and what is rendered already."""

import functools
from collections.abc import Sequence

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import Finding
from peft_lightning.data.rows.conversations import PlainText
from peft_lightning.data.tokens.answer_ends import AnswerEnds
from peft_lightning.data.tokens.rendered_row import RenderedRow, WeightedSpan
from peft_lightning.data.tokens.special_tokens import SpecialTokens
from peft_lightning.data.tokens.templates import ChatTemplate

Segments = Sequence[tuple[str, float]]


class PlainTextRenderer:
    """Finds what is in the loss of plain text.

    Args:
        template: The chat template, by which text is recognized that it has rendered; or None.
        tokens: The special tokens of the tokenizer.
        ends: How answers end.
        options: How rows become tokens.
    """

    def __init__(
        self,
        template: ChatTemplate | None,
        tokens: SpecialTokens,
        ends: AnswerEnds,
        options: TokenOptions,
    ) -> None:
        self.template, self.tokens, self.ends, self.options = template, tokens, ends, options

    def is_rendered(self, segments: Segments) -> bool:
        """Whether a text was rendered by the chat template already.

        It begins with a special token, and what the template prints before an answer is in it.
        """
        if not segments or not self._before_answer:
            return False
        text = "".join(text for text, _ in segments)
        return self._before_answer in text and bool(self.tokens.pattern.match(text.lstrip()))

    @functools.cached_property
    def _before_answer(self) -> str:
        """What tells a rendered prompt; empty if the template prints no special token there."""
        before = self.template.before_answer if self.template else ""
        return before if self.tokens.in_order(before) else ""

    def render(self, row: PlainText, rendered: bool) -> RenderedRow:
        """Find what is in the loss of ``row``.

        Args:
            row: The row.
            rendered: Whether a chat template has rendered it, so that its special tokens are meant.
        """
        findings = list(row.findings)
        segments = _without_bos(row, self.tokens.bos)
        if rendered:
            findings.append(Finding("text that is rendered in the chat template already"))
            segments, ended = self._ended(segments)
        else:
            segments, ended = self._without_end(segments, findings), False
            findings += self.tokens.findings([text for text, _ in segments])
            segments = [(self.tokens.mark(text), weight) for text, weight in segments]
        spans: list[WeightedSpan] = []
        answers: list[tuple[int, int]] = []
        at = 0
        for text, weight in segments:
            end = at + len(text)
            weight = 1.0 if self.options.train_on == "all" else weight
            if weight and answers and answers[-1][1] == at:
                answers[-1] = (answers[-1][0], end)
            elif weight:
                answers.append((at, end))
            if weight:
                spans.append((at, end, weight))
            at = end
        eos_weight = None if ended else spans[-1][2] if spans else 0.0
        text = "".join(text for text, _ in segments)
        return RenderedRow.of_marked(text, spans, answers, eos_weight, True, findings)

    def render_prompt(self, row: PlainText, rendered: bool) -> RenderedRow:
        """Return ``row`` as generation is given it."""
        text = "".join(text for text, _ in _without_bos(row, self.tokens.bos))
        marked = text if rendered else self.tokens.mark(text)
        return RenderedRow.of_marked(marked, [], [(len(marked),) * 2], add_special_prefix=True)

    def _without_end(
        self, segments: list[tuple[str, float]], findings: list[Finding]
    ) -> list[tuple[str, float]]:
        """Leave out an EOS token at the end of the text, because one is added."""
        if not segments:
            return segments
        *before, (text, weight) = segments
        text, end = self.ends.split_off(text)
        if end:
            findings.append(Finding("answer that ends with the special token", end))
        return [*before, (text, weight)]

    def _ended(self, segments: list[tuple[str, float]]) -> tuple[list[tuple[str, float]], bool]:
        """Add the template's end-of-turn token to a rendered text that has none."""
        *before, (text, weight) = segments
        if self.tokens.at_the_end(text):
            return [*before, (text.rstrip(), weight)], True
        if not self.ends.end_of_turn:
            return segments, False
        return [*before, (text + self.ends.end_of_turn, weight)], True


def _without_bos(row: PlainText, bos: str) -> list[tuple[str, float]]:
    """Return the segments of ``row`` with float weights, and without a BOS token before them."""
    segments = [(text, float(weight)) for text, weight in row.segments]
    if segments:
        segments[0] = (segments[0][0].removeprefix(bos), segments[0][1])
    return segments
