"""Messages rendered to text by a chat template."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from peft_lightning.data.records import MAX_ROW_SIZE, RowError
from peft_lightning.data.rows.conversations import Message
from peft_lightning.data.tokens.marks import Span
from peft_lightning.data.tokens.template_sources import ASKS_FOR_DATE, with_date
from peft_lightning.messages import UserError
from peft_lightning.process.time_limit import OutOfTimeError, time_limit

GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
TELLS_NONE = re.compile(r"content['\"]?\]?\s+is\s+(not\s+)?none", re.IGNORECASE)
QUESTION = "A question"
LIMIT_SECONDS = 10.0  # for one conversation; a template takes a millisecond
MAX_BASE, MAX_EXPONENT = 10**6, 100  # of a power in a template
REFUSED = "the chat template refuses the messages"

_TEMPLATE_ERRORS = (  # what a template can raise in jinja2's sandbox
    jinja2.TemplateError,  # also for what the sandbox forbids
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with products and powers that fit into memory."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            size = len(one) if isinstance(one, str | list | tuple) else 0
            if operator == "*" and isinstance(other, int) and size * other > MAX_ROW_SIZE:
                raise SecurityError(f"a product of {size * other:,} parts is too large")
        if operator == "**" and not (abs(left) < MAX_BASE and abs(right) < MAX_EXPONENT):
            raise SecurityError(f"the power {left!r:.20} ** {right!r:.20} is too large")
        return super().call_binop(context, operator, left, right)


@contextmanager
def _limited_products() -> Iterator[None]:
    """Let transformers compile templates for our sandbox; what is compiled is kept."""
    library: Any = chat_template_utils
    theirs = library.ImmutableSandboxedEnvironment
    library.ImmutableSandboxedEnvironment = _Sandbox
    try:
        yield
    finally:
        library.ImmutableSandboxedEnvironment = theirs


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
        self.templates = {name: with_date(source, date) for name, source in templates.items()}
        self.prints_date = any(ASKS_FOR_DATE.search(source) for source in templates.values())
        sources = "".join(self.templates.values())
        self.special_tokens = {  # those that a template mentions
            name: token for name, token in tokenizer.special_tokens_map.items() if name in sources
        }
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

    def names(self, key: str, tools: Any) -> bool:
        """Whether the source of the template names a key of messages, which it then may print."""
        return re.search(rf"\b{re.escape(key)}\b", self.source(tools)) is not None

    def has_generation_blocks(self, tools: Any) -> bool:
        """Whether the template says with ``{% generation %}`` blocks what is generated."""
        return GENERATION_BLOCK.search(self.source(tools)) is not None

    def generation_blocks(
        self, messages: Sequence[Message], tools: Any, variables: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """Return the text of ``messages`` and the spans of the generation blocks in it."""
        return self._render(messages, tools, variables, return_assistant_tokens_mask=True)

    @functools.cached_property
    def generation_header(self) -> str:
        """What the template prints between a user's message and the answer; may be empty."""
        alone, prompt = self._question(), self._question(generation_prompt=True)
        if not prompt.startswith(alone):  # some print EOS at the end of a conversation
            alone = alone.removesuffix(str(self.special_tokens.get("eos_token", "")))
        return prompt[len(alone) :] if alone and prompt.startswith(alone) else ""

    @functools.cached_property
    def before_answer(self) -> str:
        """What precedes an answer, without white space around it and a thought that it opens."""
        header = self.generation_header or self._question(True).rpartition(QUESTION)[2]
        return header.strip().removesuffix("<think>").rstrip()

    @functools.cached_property
    def prints_reasoning_content(self) -> bool:
        """Whether the template prints ``reasoning_content`` of an assistant's last message."""
        answer = {"role": "assistant", "content": "Answer", "reasoning_content": "A thought"}
        try:
            return "A thought" in self.render([{"role": "user", "content": QUESTION}, answer])
        except RowError:
            return False

    def _question(self, generation_prompt: bool = False) -> str:
        question = [{"role": "user", "content": QUESTION}]
        try:
            return self.render(question, generation_prompt=generation_prompt)
        except RowError:
            return ""

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        variables: Mapping[str, Any] | None,
        **options: bool,
    ) -> tuple[str, list[Span]]:
        render: Any = render_jinja_template  # its annotation says str
        source = self.source(tools)
        if any(message.get("content") is None for message in messages):
            empty = None if TELLS_NONE.search(source) else ""  # else it would print "None"
            messages = [
                {**message, "content": empty} if message.get("content") is None else message
                for message in messages
            ]
        try:
            with _limited_products(), time_limit(LIMIT_SECONDS):
                texts, spans = render(
                    conversations=[list(messages)],
                    tools=tools or None,
                    chat_template=source,
                    **options,
                    **{**self.special_tokens, **(variables or {})},
                )
        except OutOfTimeError:
            raise UserError(
                f"the chat template takes more than {LIMIT_SECONDS:g} s for one conversation: give "
                "the path of another with chat_template"
            ) from None
        except _TEMPLATE_ERRORS as error:
            raise RowError(REFUSED, str(error)) from error
        if len(texts[0]) > MAX_ROW_SIZE:
            detail = f"{len(texts[0]):,} characters; a row has at most {MAX_ROW_SIZE:,}"
            raise RowError("the chat template prints too much", detail)
        return texts[0], spans[0] if spans else []
