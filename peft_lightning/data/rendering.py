"""From a row to its texts, with the spans of characters that are in the loss."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_lightning.data.content_check import ContentCheck
from peft_lightning.data.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.generated_turns import Turn, generated_turn, sequences_of
from peft_lightning.data.options import TokenOptions
from peft_lightning.data.reasoning import thought_of, without_thought
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.special_tokens import Span, SpecialTokens, shift, unmark
from peft_lightning.data.templates import ChatTemplate
from peft_lightning.messages import UserError

WeightedSpan = tuple[int, int, float]  # characters, end exclusive, and the weight of their tokens


@dataclass(frozen=True)
class RenderedRow:
    """A text of a row and the special tokens around it.

    Args:
        text: The text.
        spans: The spans of characters in the loss; of two that overlap the later counts.
        boundaries: Where a prompt ends: up to there, the tokens are those that generation is given.
        literals: Spans whose special tokens are ordinary text.
        eos_weight: The weight of an EOS token that follows the text; None without EOS token.
        add_special_prefix: Whether the special tokens that the tokenizer puts before a text, such
            as BOS, precede it; a chat template prints them itself.
        findings: What the reader of the data should hear of.
    """

    text: str
    spans: Sequence[WeightedSpan]
    boundaries: Sequence[int] = ()
    literals: Sequence[Span] = ()
    eos_weight: float | None = None
    add_special_prefix: bool = False
    findings: tuple[Finding, ...] = ()


class RowRenderer:
    """Renders rows, each to one or several texts.

    Args:
        template: Renders conversations; without one their plain form is used.
        tokens: The special tokens of the tokenizer.
        options: How rows become tokens.
    """

    def __init__(
        self, template: ChatTemplate | None, tokens: SpecialTokens, options: TokenOptions
    ) -> None:
        self.template, self.tokens, self.options = template, tokens, options
        self._check = ContentCheck(template) if template else None

    def render(self, row: Row) -> list[RenderedRow]:
        """Render ``row`` and find what is in the loss.

        Raises:
            RowError: If the row cannot be rendered as it says.
            UserError: If it is a conversation without plain form and there is no template.
        """
        if isinstance(row, PlainText):
            return [self._plain(row, self._is_rendered(row.segments))]
        if self.template is None:
            return [self._plain(_plain_form(row), False)]
        if row.plain and self._is_rendered(row.plain.segments[:1]):
            return [self._plain(row.plain, True)]
        return self._conversation(row, self.template)

    def render_prompt(self, row: Row) -> RenderedRow:
        """Render a row without its completion, as generation is given it.

        Raises:
            RowError: If the template refuses the messages.
            UserError: If it is a conversation without plain form and there is no template.
        """
        if isinstance(row, PlainText):
            return self._plain_prompt(row, self._is_rendered(row.segments))
        if self.template is None:
            return self._plain_prompt(_plain_form(row), False)
        if row.plain and self._is_rendered(row.plain.segments):
            return self._plain_prompt(row.plain, True)
        row, findings = self._prepared(row)
        text = self.template.render(
            row.messages, row.tools, generation_prompt=True, variables=row.template_kwargs
        )
        answers = (i for i, m in enumerate(row.messages) if m["role"] == "assistant")
        turns = (generated_turn(self.template, self.tokens, row, i) for i in answers)
        boundaries = [len(t.prompt) for t in turns if text.startswith(t.prompt + t.answer[: t.end])]
        return self._unmarked(text, [], [*boundaries, len(text)], None, findings)

    # ---- conversations -------------------------------------------------------------------------

    def _conversation(self, row: Conversation, template: ChatTemplate) -> list[RenderedRow]:
        row, findings = self._prepared(row)
        train_on = self.options.train_on
        answers = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        chosen = answers if train_on == "assistant" else answers[-1:]
        chosen = [i for i in chosen if row.weight(i) or train_on == "all"]
        if not chosen:
            raise RowError("no token in the loss", "every answer of the row has the weight 0")
        turns = [generated_turn(template, self.tokens, row, i) for i in chosen]
        assert self._check is not None
        self._check.require(row, turns)
        rendered = []
        for last, contained in sequences_of(turns):
            spans = [span for turn in contained for span in self._spans(row, turn)]
            spans = self._within_blocks(row, last, spans)
            if train_on == "all":
                spans = [(0, len(last.text), 1.0), *(s for s in spans if s[2] != 1)]
            boundaries = [len(turn.prompt) for turn in contained]
            eos_weight = None if last.ended else row.weight(last.index)
            rendered.append(self._unmarked(last.text, spans, boundaries, eos_weight, findings))
        return rendered

    def _prepared(self, row: Conversation) -> tuple[Conversation, list[Finding]]:
        """Return the row as the template is given it, and findings about it."""
        findings = list(row.findings)
        messages, weights, parts = list(row.messages), row.weights, row.parts
        if self.options.system != "keep":
            messages, weights, parts = self._without_system(row, findings)
        cleaned = [self._cleaned(m, findings) for m in messages]
        findings += self.tokens.findings([cleaned, row.tools])
        variables = {**self.options.chat_template_kwargs, **row.template_kwargs}
        return (
            Conversation(
                self.tokens.mark(cleaned),
                self.tokens.mark(row.tools),
                weights,
                {i: [(self.tokens.mark(t), w) for t, w in p] for i, p in parts.items()},
                variables,
            ),
            findings,
        )

    def _cleaned(self, message: Message, findings: list[Finding]) -> Message:
        """Return a message without what is printed twice, and without thoughts that are dropped."""
        if message["role"] != "assistant":
            return message
        content = message.get("content")
        if content:
            end, ended = self.tokens.end_of_answer(content)
            stripped = content.rstrip()
            if ended and end == len(stripped):
                token = next(t for t in self._longest_first if stripped.endswith(t))
                findings.append(Finding("answer that ends with the special token", token))
                message = {**message, "content": stripped[: -len(token)]}
        if self.options.reasoning in ("drop", "error") and thought_of(message).text:
            if self.options.reasoning == "error":
                raise RowError(
                    "a thought of the assistant",
                    "reasoning: train trains it, mask makes it context, drop leaves it out",
                )
            findings.append(Finding("thought left out"))
            message = without_thought(message)
        return message

    @property
    def _longest_first(self) -> list[str]:
        return sorted(self.tokens.special, key=len, reverse=True)

    def _without_system(
        self, row: Conversation, findings: list[Finding]
    ) -> tuple[list[Message], list[float], Mapping[int, Any]]:
        """Return messages, weights and parts without system messages."""
        kept = [i for i, m in enumerate(row.messages) if m["role"] not in ("system", "developer")]
        messages = [row.messages[i] for i in kept]
        if len(kept) < len(row.messages) and self.options.system == "merge_into_user":
            texts = [m["content"] for m in row.messages if m["role"] in ("system", "developer")]
            first = next((n for n, m in enumerate(messages) if m["role"] == "user"), None)
            if first is None:
                raise RowError("no user's message", "to merge the system message into")
            merged = "\n\n".join([*texts, messages[first]["content"]])
            messages[first] = {**messages[first], "content": merged}
        elif len(kept) < len(row.messages):
            findings.append(Finding("system message left out"))
        weights = [row.weight(i) for i in kept]
        return messages, weights, {kept.index(i): p for i, p in row.parts.items() if i in kept}

    def _spans(self, row: Conversation, turn: Turn) -> list[WeightedSpan]:
        """Return the spans of a turn in its text with their weights."""
        start, end = len(turn.prompt), len(turn.prompt) + turn.end
        spans: list[WeightedSpan] = [(start, end, row.weight(turn.index))]
        text, at = turn.text, start
        for part, weight in row.parts.get(turn.index, ()):
            found = text.find(part, at, end)
            if found < 0:  # the template strips the message
                part = part.strip()
                found = text.find(part, at, end)
            if found < 0:
                raise RowError(
                    "a part of a message is not printed as it is",
                    f"message {turn.index + 1}: {part[:40]!r}; give the message one weight",
                )
            at = found + len(part)
            spans.append((found, at, weight))
        if self.options.reasoning == "mask":
            thought = thought_of(row.messages[turn.index]).text
            found = text.find(thought, start, end) if thought else -1
            if found >= 0:
                spans.append((start, found + len(thought), 0.0))
        return spans

    def _within_blocks(
        self, row: Conversation, last: Turn, spans: list[WeightedSpan]
    ) -> list[WeightedSpan]:
        """Leave out of the loss what a template with generation blocks does not mark as generated.

        The end-of-turn token belongs to an answer whether or not it is inside the block.
        """
        assert self.template is not None
        messages = row.messages[: last.index + 1]
        blocks = self.template.generation_blocks(messages, row.tools, row.template_kwargs)
        rendered = self.template.render(messages, row.tools, variables=row.template_kwargs)
        if blocks is None or rendered != last.prompt + last.answer:
            return spans
        within = []
        for start, end, weight in spans:
            for block_start, block_end in blocks:
                if block_start < end and block_end > start:
                    until = end if not last.text[block_end:end].strip() else block_end
                    rest = self.tokens.pattern.fullmatch(last.text[block_end:end].strip())
                    until = end if rest else until
                    within.append((max(start, block_start), max(until, start), weight))
        return within

    def _unmarked(
        self,
        marked: str,
        spans: Sequence[WeightedSpan],
        boundaries: Sequence[int],
        eos_weight: float | None,
        findings: Sequence[Finding],
    ) -> RenderedRow:
        text, literals, marks = unmark(marked)
        return RenderedRow(
            text,
            [(shift(start, marks), shift(end, marks), weight) for start, end, weight in spans],
            [shift(boundary, marks) for boundary in boundaries],
            literals,
            eos_weight,
            findings=tuple(findings),
        )

    # ---- plain text ----------------------------------------------------------------------------

    def _is_rendered(self, segments: Sequence[tuple[str, float]]) -> bool:
        """Whether a prompt is text that a chat template has rendered already."""
        if self.template is None or not segments:
            return False
        header = self.template.generation_header.strip()
        text = "".join(text for text, _ in segments)
        if not header or not self.tokens.pattern.search(header):
            return False
        return header in text

    def _plain(self, row: PlainText, rendered: bool) -> RenderedRow:
        findings = [*row.findings]
        segments = [(text, float(weight)) for text, weight in row.segments]
        if segments:
            segments[0] = (segments[0][0].removeprefix(self.tokens.bos), segments[0][1])
        is_ended = bool(segments) and segments[-1][0].rstrip().endswith(self.tokens.special)
        if rendered:
            findings.append(Finding("text that is rendered in the chat template already"))
            if segments and not is_ended:
                answer, weight = segments[-1]
                segments[-1] = (answer + self._end_of_turn, weight)
                is_ended = bool(self._end_of_turn)
        else:
            if is_ended:
                segments[-1] = (self._without_end(segments[-1][0], findings), segments[-1][1])
            findings += self.tokens.findings([text for text, _ in segments])
            segments = [(self.tokens.mark(text), weight) for text, weight in segments]
        text = "".join(text for text, _ in segments)
        spans: list[WeightedSpan] = []
        boundaries, at = [], 0
        for segment, weight in segments:
            weight = weight if self.options.train_on != "all" else 1.0
            if weight:
                boundaries += [at] if not spans or spans[-1][1] < at else []
                spans.append((at, at + len(segment), weight))
            at += len(segment)
        eos_weight: float | None = spans[-1][2] if spans else 0.0
        if rendered and is_ended:
            eos_weight = None
        row_of_text = self._unmarked(text, spans, boundaries, eos_weight, findings)
        return replace(row_of_text, add_special_prefix=True)

    @functools.cached_property
    def _end_of_turn(self) -> str:
        """The special token with which the template ends an answer; "" if there is none."""
        assert self.template is not None
        answer = "The answer"
        turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": answer}]
        try:
            text = self.template.render(turns).rpartition(answer)[2]
        except RowError:
            return ""
        end, ended = self.tokens.end_of_answer(text)
        return text[:end] if ended else ""

    def _without_end(self, text: str, findings: list[Finding]) -> str:
        stripped = text.rstrip()
        token = next(t for t in self._longest_first if stripped.endswith(t))
        findings.append(Finding("answer that ends with the special token", token))
        return stripped[: -len(token)]

    def _plain_prompt(self, row: PlainText, rendered: bool) -> RenderedRow:
        text = "".join(text for text, _ in row.segments).removeprefix(self.tokens.bos)
        prompt = self._unmarked(text if rendered else self.tokens.mark(text), [], [], None, [])
        return replace(prompt, boundaries=[len(prompt.text)], add_special_prefix=True)


def _plain_form(row: Conversation) -> PlainText:
    if row.plain is None:
        raise UserError(
            "these rows are conversations, but the tokenizer has no chat template (or"
            " chat_template is 'none'); give chat_template the path of a Jinja file, take"
            " the tokenizer of an instruction-tuned model, or use prompt_completion rows"
        )
    return replace(row.plain, findings=(*row.findings, *row.plain.findings))
