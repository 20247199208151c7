"""Chat templates: messages rendered to text, and the spans of the assistant's turns in it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peft_lightning.data.conversations import Conversation, Message
from peft_lightning.data.records import MAX_ROW_SIZE, RowError
from peft_lightning.messages import UserError

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")

_TEMPLATE_ERRORS = (  # what a template can raise in jinja2's sandbox
    jinja2.TemplateError,  # also for what the sandbox forbids
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)

Span = tuple[int, int]  # characters, end exclusive
WeightedSpan = tuple[int, int, float]  # with the weight of its tokens in the loss


def load_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """Return the source of the chat template, or None for plain text.

    Args:
        tokenizer: Provides the template if ``chat_template`` is None.
        chat_template: "none" for plain text, the path of a Jinja file, or the source of a template.

    Raises:
        UserError: If the file does not exist.
    """
    if chat_template is None:
        own = tokenizer.chat_template
        return own.get("default") if isinstance(own, dict) else own
    if chat_template == "none":
        return None
    if "{%" in chat_template or "{{" in chat_template:
        return chat_template
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise UserError(
            f"chat_template {chat_template!r}: no such file; give the path of a Jinja file, 'none'"
            " for plain text, or nothing for the tokenizer's own template"
        )
    return path.read_text(encoding="utf-8")


class ChatTemplate:
    """Renders messages with a chat template and finds the assistant's turns in the text.

    Args:
        tokenizer: Provides the special tokens that the template prints.
        template: The Jinja source.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.template = template
        self.has_generation_blocks = bool(GENERATION_BLOCK.search(template))
        self.special_tokens = dict(tokenizer.special_tokens_map)
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        self.end_tokens = tuple({*(t for t in added if added[t]), *tokenizer.all_special_tokens})
        tokens = sorted({*added, *self.end_tokens}, key=len, reverse=True)
        self.token_pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def render(self, messages: Sequence[Message], tools: Any, generation_prompt: bool) -> str:
        """Return the text of ``messages``, optionally followed by the generation prompt.

        Raises:
            RowError: If the template refuses the messages.
        """
        return self._render(messages, tools, add_generation_prompt=generation_prompt)[0]

    def render_with_spans(
        self, row: Conversation, only_last: bool
    ) -> tuple[str, list[WeightedSpan], bool]:
        """Render a conversation and find the assistant's turns in the text.

        A turn starts after its generation prompt and ends with its end-of-turn token; white space
        after that token is not part of it.

        Args:
            row: A conversation whose last message is the assistant's.
            only_last: Whether to find only the last turn, else every turn with a weight.

        Returns:
            The text, the spans of the turns in it with their weights, and whether the EOS token
            must be added because the template prints no end-of-turn token; the text then ends with
            the last turn.

        Raises:
            RowError: If the template renders a turn differently when another follows, so that its
                span is undefined.
        """
        if self.has_generation_blocks:
            text, spans = self._spans_from_generation_blocks(row)
        else:
            text, spans = self._spans_from_prefixes(row, only_last)
        last = max(spans)
        closed = text[: spans[last][1]].endswith(self.end_tokens)
        if not closed:  # without an EOS token the model would not learn to stop
            text = text[: spans[last][1]]
        wanted = [last] if only_last else spans
        return text, [(*spans[i], row.weight(i)) for i in wanted if row.weight(i)], not closed

    def _spans_from_generation_blocks(self, row: Conversation) -> tuple[str, dict[int, Span]]:
        """Find the turns by the template's ``{% generation %}`` blocks."""
        text, found = self._render(row.messages, row.tools, return_assistant_tokens_mask=True)
        turns = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        if len(found) != len(turns):
            raise RowError(
                "the template's {% generation %} blocks do not match the turns",
                f"{len(found)} blocks for {len(turns)} assistant turns",
            )
        ends = list(self.token_pattern.finditer(text))
        marker = ends[-1].group() if ends else ""
        spans = {}
        for turn, (start, end) in zip(turns, found, strict=True):
            body = text[start:end].rstrip()
            if body.endswith(self.end_tokens):
                end = start + len(body)
            elif marker and text.startswith(marker, end):  # outside the block
                end += len(marker)
            spans[turn] = (start, end)
        return text, spans

    def _spans_from_prefixes(
        self, row: Conversation, only_last: bool
    ) -> tuple[str, dict[int, Span]]:
        """Find the turns by rendering the messages before and up to each of them."""
        messages, tools = row.messages, row.tools
        text = self.render(messages, tools, generation_prompt=False)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        spans = {}
        for i in turns[-1:] if only_last else turns:
            if not row.weight(i) and i != turns[-1]:
                continue
            upto = text
            if i + 1 < len(messages):
                upto = self.render(messages[: i + 1], tools, generation_prompt=False)
            end = len(upto.rstrip())
            if text[:end] != upto[:end]:
                raise RowError(
                    "the chat template rewrites earlier turns",
                    f"message {i + 1} renders differently when others follow, so its loss mask is"
                    " unknown; train_on: last trains on the last turn only",
                )
            spans[i] = (self._start_of_turn(messages, i, tools, text), end)
        return text, spans

    def _start_of_turn(self, messages: Sequence[Message], i: int, tools: Any, text: str) -> int:
        """Return the index in ``text`` of message ``i``, after its generation prompt."""
        if i == 0:  # templates cannot render zero messages: use the prompt that follows this one
            alone = self.render(messages[:1], tools, generation_prompt=False)
            prompt = self.render(messages[:1], tools, generation_prompt=True)[len(alone) :]
            at = text.find(prompt)
            if not prompt or at < 0:
                raise RowError(
                    "first message from the assistant",
                    "the template has no generation prompt for it",
                )
            return at + len(prompt)
        prompt = self.render(messages[:i], tools, generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        before = self.render(messages[:i], tools, generation_prompt=False)
        if not text.startswith(before.rstrip()):
            raise RowError(
                "the chat template rewrites earlier turns",
                f"the text before message {i + 1} changes when it follows",
            )
        # the prompt contains something that this turn lacks, such as an empty thinking block: the
        # turn starts at the line of the first difference, and never inside a special token
        both = enumerate(zip(prompt, text, strict=False))
        start = next((k for k, (a, b) in both if a != b), min(len(prompt), len(text)))
        start = text.rfind("\n", len(before), start) + 1 or start
        inside = (m for m in self.token_pattern.finditer(text) if m.start() < start < m.end())
        return next((m.start() for m in inside), start)

    def _render(
        self, messages: Sequence[Message], tools: Any, **options: bool
    ) -> tuple[str, list[Span]]:
        render: Any = render_jinja_template  # its annotation says str
        try:
            texts, spans = render(
                conversations=[list(messages)],
                tools=tools,
                chat_template=self.template,
                **options,
                **self.special_tokens,
            )
        except _TEMPLATE_ERRORS as error:
            raise RowError("the chat template refuses the messages", str(error)) from error
        if len(texts[0]) > MAX_ROW_SIZE:
            detail = f"{len(texts[0]):,} characters; a row has at most {MAX_ROW_SIZE:,}"
            raise RowError("the chat template prints too much", detail)
        return texts[0], spans[0] if spans else []
