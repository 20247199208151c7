"""Thoughts of the assistant: found in messages, and put where generation would produce them."""

import re
from dataclasses import dataclass

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Message
from peft_lightning.data.tokens.marks import THOUGHT_END, without_marks

FIELDS = ("reasoning_content", "thinking", "reasoning")  # transformers gives templates all three
INLINE = re.compile(r"\A\s*<think>(?P<thought>.*?)</think>\s*", re.DOTALL)
OPENED = re.compile(r"<think>\s*\Z")


@dataclass(frozen=True)
class Thought:
    """What the assistant thinks before it answers.

    Args:
        text: The thought without tags and the white space around it; empty for none.
        answer: The content of the message without the thought.
    """

    text: str
    answer: str


def thought_of(message: Message) -> Thought:
    """Return the thought of an assistant's message, from a field of its own or from its content.

    A thought in the content stands at its beginning, between ``<think>`` and ``</think>``.

    Raises:
        RowError: If there are two different thoughts.
    """
    content = message.get("content") or ""
    field = next((str(message[name]).strip() for name in FIELDS if message.get(name)), "")
    inline = INLINE.match(content)
    if not inline:
        return Thought(field, content)
    text = inline["thought"].strip()
    if text and field and without_marks(text) != without_marks(field):
        raise RowError(
            "two thoughts in one message",
            f"{field[:40]!r} and {text[:40]!r}; leave one of them out",
        )
    return Thought(text or field, content[inline.end() :])


def without_thought(message: Message) -> Message:
    """Return an assistant's message without its thought."""
    rest = {key: value for key, value in message.items() if key not in FIELDS}
    if message.get("content"):
        rest["content"] = thought_of(message).answer
    return rest


def with_thought_in_field(message: Message) -> Message:
    """Return an assistant's message with its thought in ``reasoning_content``."""
    return {**without_thought(message), "reasoning_content": thought_of(message).text}


def with_end_of_thought(message: Message) -> Message:
    """Return an assistant's message with a private mark behind its thought."""
    content = message.get("content") or ""
    inline = INLINE.match(content)
    marked = {k: str(message[k]).rstrip() + THOUGHT_END for k in FIELDS if message.get(k)}
    if inline:
        end = inline.start("thought") + len(inline["thought"].rstrip())
        marked["content"] = content[:end] + THOUGHT_END + content[end:]
    return {**message, **marked}


def opened_thought(prompt: str) -> str:
    """Return the tag with which ``prompt`` ends, if generation begins inside a thought, else ""."""
    opened = OPENED.search(prompt)
    return opened.group() if opened else ""


def close_thought(prompt: str, thought: str) -> str:
    """Return how generation continues ``prompt``, which opens a thought, up to the answer."""
    line_end = "\n" if prompt.endswith("\n") else ""
    return f"{thought}{line_end}</think>\n\n"
