"""Chat templates: which one a row is rendered with, and messages rendered to text."""

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from peft_lightning.data.conversations import Message
from peft_lightning.data.records import MAX_ROW_SIZE, RowError
from peft_lightning.messages import UserError

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ASKS_FOR_DATE = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")
TELLS_NONE = re.compile(r"content['\"]?\]?\s+is\s+(not\s+)?none", re.IGNORECASE)

_TEMPLATE_ERRORS = (  # what a template can raise in jinja2's sandbox
    jinja2.TemplateError,  # also for what the sandbox forbids
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)

Span = tuple[int, int]  # characters, end exclusive


def load_templates(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> dict[str, str]:
    """Return the sources of the chat templates by name, or none of them for plain text.

    Args:
        tokenizer: Provides the templates if ``chat_template`` is None: one, called "default", or
            several with names, of which "tool_use" is for conversations with tools.
        chat_template: "none" for plain text, the path of a Jinja file, or the source of a template.

    Raises:
        UserError: If the file does not exist or is no chat template, or if none of several
            templates is the default.
    """
    if chat_template is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            return _with_default(own)
        return {"default": own} if own else {}
    if chat_template == "none":
        return {}
    if "{%" in chat_template or "{{" in chat_template:
        return {"default": chat_template}
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise UserError(
            f"chat_template {chat_template!r}: no such file; give the path of a Jinja file, 'none'"
            " for plain text, or nothing for the tokenizer's own template"
        )
    source = path.read_text(encoding="utf-8")
    if "messages" not in source:
        raise UserError(
            f"chat_template {chat_template!r}: the file never mentions 'messages', so it is no"
            " chat template; give a Jinja file that renders the list 'messages'"
        )
    return {"default": source}


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give ``tokenizer`` a chat template as for ``load_templates``; None keeps its own."""
    if chat_template is not None:
        templates = load_templates(tokenizer, chat_template)
        tokenizer.chat_template = templates.get("default")


def _with_default(templates: Mapping[str, str]) -> dict[str, str]:
    if "default" in templates:
        return dict(templates)
    if len(templates) == 1:
        return {"default": next(iter(templates.values()))}
    raise UserError(
        f"the tokenizer has several chat templates ({', '.join(templates)}) and none of them is"
        " called default; save the one that is meant as a file, and name it with chat_template"
    )


class ChatTemplate:
    """Renders messages with a chat template.

    Args:
        tokenizer: Provides the special tokens that the template prints.
        templates: Jinja sources by name, "default" among them.
        date: The date, YYYY-MM-DD, that a template prints which asks for today's; None for today.

    Raises:
        UserError: If ``date`` is not a date, or the template prints every question alike.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        templates: Mapping[str, str],
        date: str | None = None,
    ) -> None:
        self.templates = {name: _with_date(source, date) for name, source in templates.items()}
        self.prints_date = any(ASKS_FOR_DATE.search(source) for source in templates.values())
        self.special_tokens = dict(tokenizer.special_tokens_map)
        try:
            texts = {self.render([{"role": "user", "content": q}]) for q in ("Who?", "Where?")}
        except RowError:  # it wants other messages than one question
            return
        if len(texts) == 1:
            raise UserError(
                f"the chat template prints {texts.pop()[:60]!r} for every question, so it is none;"
                " give the path of another with chat_template, or 'none' for plain text"
            )

    def source(self, tools: Any) -> str:
        """Return the source of the template for a conversation with or without ``tools``."""
        return self.templates["tool_use" if tools and "tool_use" in self.templates else "default"]

    def render(
        self,
        messages: Sequence[Message],
        tools: Any = None,
        generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of ``messages``, optionally followed by the generation prompt.

        Args:
            messages: The messages.
            tools: JSON schemas of tools.
            generation_prompt: Whether to end with what precedes an answer.
            variables: Further variables of the template.

        Raises:
            RowError: If the template refuses the messages.
        """
        return self._render(messages, tools, variables, add_generation_prompt=generation_prompt)[0]

    def generation_blocks(
        self, messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]
    ) -> list[Span] | None:
        """Return the spans of the template's ``{% generation %}`` blocks; None if it has none."""
        if not GENERATION_BLOCK.search(self.source(tools)):
            return None
        return self._render(messages, tools, variables, return_assistant_tokens_mask=True)[1]

    @functools.cached_property
    def generation_header(self) -> str:
        """What the template prints between a user's message and the answer; may be empty."""
        question = [{"role": "user", "content": "Question"}]
        try:
            alone = self.render(question)
            prompt = self.render(question, generation_prompt=True)
        except RowError:
            return ""
        return prompt[len(alone) :] if prompt.startswith(alone) else ""

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        variables: Mapping[str, Any] | None,
        **options: bool,
    ) -> tuple[str, list[Span]]:
        render: Any = render_jinja_template  # its annotation says str
        source = self.source(tools)
        if any("content" in message and message["content"] is None for message in messages):
            empty = None if TELLS_NONE.search(source) else ""  # else it would print "None"
            messages = [{**m, "content": empty} if _is_null(m) else m for m in messages]
        try:
            texts, spans = render(
                conversations=[list(messages)],
                tools=tools or None,
                chat_template=source,
                **options,
                **{**self.special_tokens, **(variables or {})},
            )
        except _TEMPLATE_ERRORS as error:
            raise RowError("the chat template refuses the messages", str(error)) from error
        if len(texts[0]) > MAX_ROW_SIZE:
            detail = f"{len(texts[0]):,} characters; a row has at most {MAX_ROW_SIZE:,}"
            raise RowError("the chat template prints too much", detail)
        return texts[0], spans[0] if spans else []


def _is_null(message: Message) -> bool:
    return "content" in message and message["content"] is None


def _with_date(source: str, date: str | None) -> str:
    """Return a template that prints ``date`` where ``source`` asks for today's."""
    if date is None:
        return source
    try:
        day = datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"template_date must be a date such as 2026-01-31, got {date!r}") from None

    def formatted(match: re.Match[str]) -> str:
        return repr(day.strftime(match["format"]))

    return ASKS_FOR_DATE.sub(formatted, source)
