"""Thoughts of the assistant: found in messages, and put where generation would produce them."""

import re
from dataclasses import dataclass

from peft_lightning.data.conversations import Message

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
    """Return the thought of an assistant's message, from ``reasoning_content`` or from its content.

    A thought in the content stands at its beginning, between ``<think>`` and ``</think>``.
    """
    content = message.get("content") or ""
    inline = INLINE.match(content)
    if inline:
        return Thought(inline["thought"].strip(), content[inline.end() :])
    return Thought((message.get("reasoning_content") or "").strip(), content)


def without_thought(message: Message) -> Message:
    """Return an assistant's message without its thought."""
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    if message.get("content"):
        rest["content"] = thought_of(message).answer
    return rest


def opened_thought(prompt: str) -> str:
    """Return the tag with which ``prompt`` ends, if generation begins inside a thought, else ""."""
    opened = OPENED.search(prompt)
    return opened.group() if opened else ""


def close_thought(prompt: str, thought: str) -> str:
    """Return how generation continues ``prompt``, which opens a thought, up to the answer."""
    line_end = "\n" if prompt.endswith("\n") else ""
    return f"{thought}{line_end}</think>\n\n"
