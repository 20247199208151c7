"""What a chat template prints around the messages of a conversation, as a Go template too.

Ollama's templates are Go's. What a chat template prints between messages is found by rendering a
conversation; longer ones tell whether a Go template of these parts prints the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft_lightning.data import ChatTemplate, Message, PromptFormat, RowError, load_templates
from peft_lightning.messages import UserError

_TEXTS = ("The first question", "An answer", "The second question", "Another answer", "The third")
_SYSTEM = "What the system says"


@dataclass(frozen=True)
class Turns:
    """What a chat template prints around the messages of a conversation.

    Args:
        first: Before the first message, if the user wrote it.
        before_system: Before a system message; None if the template takes none.
        after_system: Between it and the first question.
        after_question: Between a question and the answer that follows it in the conversation.
        before_answer: Between the last question and the answer to come.
        after_answer: Between an answer and the next question.
    """

    first: str
    before_system: str | None
    after_system: str
    after_question: str
    before_answer: str
    after_answer: str

    def render(self, messages: Sequence[Message]) -> str:
        """Return what ``as_go`` prints for messages, the last of them a question."""
        text = ""
        for i, message in enumerate(messages):
            content, is_last = message["content"], i == len(messages) - 1
            match message["role"]:
                case "system":
                    text += f"{self.before_system}{content}{self.after_system}"
                case "user":
                    text += f"{'' if i else self.first}{content}"
                    text += self.before_answer if is_last else self.after_question
                case _:
                    text += f"{content}{self.after_answer}"
        return text

    def as_go(self) -> str:
        """Return a Go template for Ollama."""
        answer = _literal(self.before_answer)
        if self.after_question != self.before_answer:
            answer = (
                f"{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{answer}{{{{ else }}}}"
                f"{_literal(self.after_question)}{{{{ end }}}}"
            )
        system = ""
        if self.before_system is not None:
            system = (
                f'{{{{ if eq .Role "system" }}}}{_literal(self.before_system)}{{{{ .Content }}}}'
                f"{_literal(self.after_system)}{{{{ end }}}}"
            )
        return (
            f"{{{{ range $i, $_ := .Messages }}}}{system}"
            f'{{{{ if eq .Role "user" }}}}{{{{ if eq $i 0 }}}}{_literal(self.first)}{{{{ end }}}}'
            f"{{{{ .Content }}}}{answer}{{{{ end }}}}"
            f'{{{{ if eq .Role "assistant" }}}}{{{{ .Content }}}}{_literal(self.after_answer)}'
            "{{ end }}{{ end }}"
        )


def find_turns(tokenizer: Any, prompts: PromptFormat) -> Turns | None:
    """Return the turns of the chat template with which an adapter was trained; None for plain text.

    Args:
        tokenizer: Prints a BOS token in front of every text, or not.
        prompts: Names a chat template, its variables and its date, if not the tokenizer's.

    Raises:
        UserError: If the template cannot be put together from turns, as one that trims or counts
            messages; says which conversation it prints otherwise.
    """
    templates = load_templates(tokenizer, prompts.chat_template)
    if not templates:
        return None
    chat = ChatTemplate(tokenizer, templates, prompts.template_date)
    bos = str(tokenizer.bos_token or "")
    ids = tokenizer("a")["input_ids"]
    printed_anyway = bos if bos and ids and ids[0] == tokenizer.bos_token_id else ""

    def rendered(messages: Sequence[Message]) -> str:
        variables = prompts.chat_template_kwargs
        text = chat.render(messages, generation_prompt=True, variables=variables)
        return text.removeprefix(printed_anyway)

    try:
        first, before_answer = _split(rendered(_talk(1)), _TEXTS[:1])
        _, after_question, after_answer, _ = _split(rendered(_talk(3)), _TEXTS[:3])
        turns = Turns(first, None, "", after_question, before_answer, after_answer)
        _check(turns, rendered, with_system=False)
        try:
            parts = _split(rendered(_talk(1, with_system=True)), (_SYSTEM, _TEXTS[0]))
            full = replace(turns, before_system=parts[0], after_system=parts[1])
            _check(full, rendered, with_system=True)
            return full
        except (RowError, UserError):  # it takes no system message, or prints it elsewhere
            if prompts.system_prompt is not None:
                raise
    except RowError as error:
        raise UserError(f"it refuses a conversation: {error}") from None
    return turns


def _check(turns: Turns, rendered: Callable[[Sequence[Message]], str], with_system: bool) -> None:
    """Raise UserError if the chat template prints a conversation otherwise."""
    for count in (1, 3, 5):
        messages = _talk(count, with_system)
        if turns.render(messages) != rendered(messages):
            raise UserError(f"it prints {len(messages)} messages otherwise than turn by turn")


def _talk(count: int, with_system: bool = False) -> list[Message]:
    """Return a conversation of ``count`` messages, the first and the last of them questions."""
    roles = ["user", "assistant"] * count
    messages: list[Message] = [
        {"role": r, "content": t} for r, t in zip(roles, _TEXTS[:count], strict=False)
    ]
    return [{"role": "system", "content": _SYSTEM}] * with_system + messages


def _split(text: str, contents: Sequence[str]) -> list[str]:
    """Return what stands before, between and after the contents of messages."""
    parts, rest = [], text
    for content in contents:
        before, found, rest = rest.partition(content)
        if not found:
            raise UserError("it does not print the content of every message as it is")
        parts.append(before)
    return [*parts, rest]


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
