"""Chat templates: from messages to text, and where in that text the assistant's turns stand."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peft_lightning.data.conversations import Conversation, Message
from peft_lightning.data.sources import LONGEST_LINE, RowError

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

_FAULTS = (  # what a template, a program from elsewhere, can raise inside the sandbox
    jinja2.TemplateError,  # what the sandbox forbids among it
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)

Span = tuple[int, int]  # characters, end exclusive


def load_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str | None:
    """Return the text of the chat template to use, None for plain text.

    Args:
        tokenizer: Its own template is used when ``chat_template`` is None.
        chat_template: "none" for plain text, the path of a Jinja file, or a template's text.

    Raises:
        ValueError: If the file is not there.
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
        raise ValueError(
            f"chat_template {chat_template!r}: no such file; give the path of a Jinja file, 'none'"
            " for plain text, or nothing for the tokenizer's own template"
        )
    return path.read_text(encoding="utf-8")


class ChatTemplate:
    """One tokenizer's template, ready to render.

    Args:
        tokenizer: Gives the special tokens that the template prints.
        template: The Jinja text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.template = template
        self.marks_turns = bool(GENERATION.search(template))
        self.special_tokens = dict(tokenizer.special_tokens_map)
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        self.end_tokens = tuple({*(t for t in added if added[t]), *tokenizer.all_special_tokens})
        tokens = sorted({*added, *self.end_tokens}, key=len, reverse=True)
        self.token_pattern = re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def render(self, messages: Sequence[Message], tools: Any, generation_prompt: bool) -> str:
        """Return the text of ``messages``, with the head of an answer if asked for.

        Raises:
            RowError: If the template refuses them.
        """
        return self._render(messages, tools, add_generation_prompt=generation_prompt)[0]

    def render_spans(self, row: Conversation, only_last: bool) -> tuple[str, list[Span], bool]:
        """Render a conversation and find the assistant's turns in the text.

        A turn starts behind what the template prints to prompt for it and ends with its
        end-of-turn token; white space behind that is no part of it.

        Args:
            row: Its last message is the assistant's.
            only_last: Find the last turn only, else every turn that is not ``untrained``.

        Returns:
            The text, the turns' spans in it, and whether the text lacks an end marker and must be
            closed with the EOS token (it then ends with the last turn).

        Raises:
            RowError: If the template changes a turn once another follows, so that no span is right.
        """
        if self.marks_turns:
            text, spans = self._marked(row)
        else:
            text, spans = self._by_prefix(row, only_last)
        last = max(spans)
        closed = text[: spans[last][1]].endswith(self.end_tokens)
        if not closed:  # nothing would teach the model to stop
            text = text[: spans[last][1]]
        wanted = [last] if only_last else spans
        return text, [spans[i] for i in wanted if i not in row.untrained], not closed

    def _marked(self, row: Conversation) -> tuple[str, dict[int, Span]]:
        """Take the turns from the template's own ``{% generation %}`` blocks."""
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
            elif marker and text.startswith(marker, end):  # the block left the end marker out
                end += len(marker)
            spans[turn] = (start, end)
        return text, spans

    def _by_prefix(self, row: Conversation, only_last: bool) -> tuple[str, dict[int, Span]]:
        """Find the turns by rendering the messages before and up to each of them."""
        messages, tools = row.messages, row.tools
        text = self.render(messages, tools, generation_prompt=False)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        spans = {}
        for i in turns[-1:] if only_last else turns:
            if i in row.untrained and i != turns[-1]:
                continue
            upto = text
            if i + 1 < len(messages):
                upto = self.render(messages[: i + 1], tools, generation_prompt=False)
            end = len(upto.rstrip())
            if text[:end] != upto[:end]:
                raise RowError(
                    "the chat template rewrites earlier turns",
                    f"message {i + 1} renders otherwise once others follow, so its loss mask is"
                    " unknown; train_on: last trains on the last turn only",
                )
            spans[i] = (self._start(messages, i, tools, text), end)
        return text, spans

    def _start(self, messages: Sequence[Message], i: int, tools: Any, text: str) -> int:
        """Return where message ``i``'s own text starts: behind the prompt for it."""
        if i == 0:  # templates refuse to render nothing: take the prompt's tail from elsewhere
            alone = self.render(messages[:1], tools, generation_prompt=False)
            prompt = self.render(messages[:1], tools, generation_prompt=True)[len(alone) :]
            at = text.find(prompt)
            if not prompt or at < 0:
                raise RowError("first message from the assistant", "the template cannot place it")
            return at + len(prompt)
        prompt = self.render(messages[:i], tools, generation_prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        before = self.render(messages[:i], tools, generation_prompt=False)
        if not text.startswith(before.rstrip()):
            raise RowError(
                "the chat template rewrites earlier turns",
                f"the text before message {i + 1} changes once it follows",
            )
        # The prompt opens something this turn lacks, such as an empty thinking block: the turn
        # starts where they part, at the line's start and never inside a special token.
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
        except _FAULTS as error:
            raise RowError("the chat template refuses the messages", str(error)) from error
        if len(texts[0]) > LONGEST_LINE:
            detail = f"{len(texts[0]):,} characters; a row has at most {LONGEST_LINE:,}"
            raise RowError("the chat template prints too much", detail)
        return texts[0], spans[0] if spans else []
