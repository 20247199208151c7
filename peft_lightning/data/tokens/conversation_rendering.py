"""From a conversation to its texts, with the spans of characters that are in the loss."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.tokens.answer_ends import AnswerEnds
from peft_lightning.data.tokens.content_check import ContentCheck, pieces_of_answer, with_remedy
from peft_lightning.data.tokens.generated_turns import Turn, generated_turn, sequences_of
from peft_lightning.data.tokens.marks import PART, THOUGHT_END, Span, has_escaped_marks, has_marks
from peft_lightning.data.tokens.preparation import Preparation
from peft_lightning.data.tokens.rendered_row import RenderedRow, WeightedSpan
from peft_lightning.data.tokens.templates import ChatTemplate

OUTSIDE = "outside the chat template's generation blocks, so not in the loss:"


class ConversationRenderer:
    """Renders conversations with a chat template, each to one or several texts.

    Args:
        template: The chat template.
        ends: How answers end in it.
        options: How rows become tokens.
    """

    def __init__(self, template: ChatTemplate, ends: AnswerEnds, options: TokenOptions) -> None:
        self.template, self.ends, self.options = template, ends, options
        self._check = ContentCheck(template, ends)
        self._preparation = Preparation(
            ends.special_tokens, ends, template.prints_reasoning_content, options
        )

    def render(self, row: Conversation) -> list[RenderedRow]:
        """Return the texts of a conversation, with what is in the loss.

        Raises:
            RowError: If the template refuses it or leaves something out.
        """
        row, findings = self._preparation.prepare(row)
        findings = [
            finding
            for finding in findings
            if finding.kind != "unused key" or not self.template.names(finding.subject, row.tools)
        ]
        answers = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        chosen = answers[-1:] if self.options.train_on == "last" else answers
        if self.options.train_on != "all":
            chosen = [i for i in chosen if row.weight(i)]
        if not chosen:
            raise RowError("no token in the loss", "every answer of the row has the weight 0")
        try:
            turns = [generated_turn(self.template, self.ends, row, i) for i in chosen]
        except RowError as error:
            raise with_remedy(error, row, self.template) from error
        self._check.require(row, turns)
        context = self._context(row, [i for i in answers if i < chosen[-1] and i not in chosen])
        rendered = []
        for last, contained in sequences_of(turns):
            spans = [span for turn in contained for span in self._spans(row, turn, findings)]
            if self.options.train_on == "all" and last is turns[-1]:
                spans = [(0, len(last.text), 1.0), *(span for span in spans if span[2] != 1)]
            known = [turn for turn in (*context, *turns) if turn is last or turn.begins(last.text)]
            eos_weight = None if last.ended else row.weight(last.index)
            text = RenderedRow.of_marked(
                last.text, spans, _places(row, known), eos_weight, findings=findings
            )
            if has_escaped_marks(text.text) and has_marks(row.messages):
                raise RowError(
                    "special tokens in text that the chat template prints in escaped JSON",
                    "special_tokens_in_text: keep leaves them as they are",
                )
            rendered.append(text)
        return rendered

    def render_prompt(self, row: Conversation) -> RenderedRow:
        """Return a conversation as generation is given it.

        Its last message is to be answered, or if it is the assistant's, to be continued.

        Raises:
            RowError: If the template refuses the messages.
        """
        continued = row.messages[-1]["role"] == "assistant"
        row, findings = self._preparation.prepare(_with_rest(row) if continued else row)
        try:
            if continued:
                turn = generated_turn(self.template, self.ends, row, len(row.messages) - 1)
                if (edge := turn.text.find(PART, turn.start)) < 0:
                    raise RowError(
                        "the chat template does not print the start of an answer as it is",
                        "end the prompt with a user's message",
                    )
                text = turn.text[:edge]
            else:
                text = self.template.render(
                    row.messages, row.tools, generation_prompt=True, variables=row.template_kwargs
                )
        except RowError as error:
            raise with_remedy(error, row, self.template) from error
        turns = self._context(
            row, [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        )
        places = _places(row, [turn for turn in turns if turn.begins(text)])
        if continued:
            places.append((turn.start, len(text)))
        places.append((len(text), len(text)))
        return RenderedRow.of_marked(text, [], places, findings=findings)

    def _context(self, row: Conversation, answers: Sequence[int]) -> list[Turn]:
        """Return earlier turns, which are not trained, where the template can generate them."""
        turns = []
        for i in answers:
            try:
                turns.append(generated_turn(self.template, self.ends, row, i))
            except RowError:
                continue
        return turns

    def _spans(self, row: Conversation, turn: Turn, findings: list[Finding]) -> list[WeightedSpan]:
        """Return the spans of a turn in its text with their weights."""
        start, end, text = turn.start, turn.end, turn.text
        weight = row.weight(turn.index)
        spans: list[WeightedSpan] = [(start, end, weight)]
        parts = row.parts.get(turn.index)
        if parts:
            edges = [i for i in range(start, end) if text[i] == PART]
            if len(edges) != len(parts) - 1:
                raise RowError(
                    "parts of a message are not printed one after the other",
                    f"message {turn.index + 1}; give the message one weight",
                )
            edges = [start, *edges, end]
            pieces = zip(itertools.pairwise(edges), parts, strict=True)
            spans = [(a, b, part_weight) for (a, b), (_, part_weight) in pieces]
        if self.options.reasoning == "mask":
            found = text.rfind(THOUGHT_END, start, end)
            if found >= 0:
                spans.append((start, found, 0.0))
        return self._within_blocks(row, turn, spans, findings)

    def _within_blocks(
        self, row: Conversation, turn: Turn, spans: list[WeightedSpan], findings: list[Finding]
    ) -> list[WeightedSpan]:
        """Leave out of the loss what a template with generation blocks does not mark as generated.

        The end-of-turn token belongs to an answer whether or not it is inside the block. A part of
        the message that is outside is a finding.
        """
        if not self.template.has_generation_blocks(row.tools):
            return spans
        messages = row.messages[: turn.index + 1]
        text, blocks = self.template.generation_blocks(messages, row.tools, row.template_kwargs)
        if text != turn.prompt + turn.answer:
            return spans
        blocks = [block for block in blocks if block[0] < turn.end and block[1] > turn.start]
        if not blocks:
            raise RowError(
                "the chat template has no generation block around an answer",
                f"message {turn.index + 1}; weight: 0 leaves it out of the loss",
            )
        if self.ends.special_tokens.is_only_special(text[blocks[-1][1] : turn.end]):
            blocks[-1] = (blocks[-1][0], turn.end)
        for what, said in pieces_of_answer(row.messages[turn.index]):
            at = text.find(said.strip(), turn.start, turn.end)
            if at >= 0 and _covered(blocks, at, at + len(said.strip())) < len(said.strip()):
                is_thought = what == "thought" and self.options.reasoning == "mask"
                findings += [] if is_thought else [Finding(OUTSIDE, what)]
        return [
            (max(start, first), min(end, last), weight)
            for start, end, weight in spans
            for first, last in blocks
            if max(start, first) < min(end, last)
        ]


def _covered(blocks: Sequence[Span], start: int, end: int) -> int:
    """Return how many characters from ``start`` to ``end`` are in blocks."""
    return sum(max(0, min(end, last) - max(start, first)) for first, last in blocks)


def _places(row: Conversation, turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Return where answers are in a text, and where those begin that continue one of a prompt."""
    places = [(turn.start, turn.end) for turn in turns]
    for turn in turns:
        parts = row.parts.get(turn.index)
        edge = turn.text.find(PART, turn.start, turn.end) if parts and not parts[0][1] else -1
        if edge >= 0:
            places.append((edge, turn.end))
    return places


def _with_rest(row: Conversation) -> Conversation:
    """Return a conversation that ends with the start of an answer, with a rest in a part behind."""
    last, start = len(row.messages) - 1, row.messages[-1]["content"]
    ended = {**row.messages[-1], "content": f"{start}."}
    parts = {**row.parts, last: [(start, 0.0), (".", 1.0)]}
    return replace(row, messages=[*row.messages[:-1], ended], parts=parts)
