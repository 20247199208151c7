"""The two kinds of row: conversations and plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from peft_lightning.data.records import Finding, RowError

Message = dict[str, Any]
Parts = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class PlainText:
    """Text that is tokenized without a chat template.

    Args:
        segments: Pieces of the text in order, each with the weight of its tokens in the loss; 0, or
            False, for tokens that are not in the loss.
        findings: What the reader of the data should hear of.
    """

    segments: Sequence[tuple[str, float]]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Messages that are rendered by a chat template.

    Args:
        messages: Dicts with "role" and "content", as in OpenAI's API and HF chat templates. A
            message with tool calls and no text has the content None; a thought is
            "reasoning_content".
        tools: JSON schemas of the tools that the assistant may call, passed to the template.
        weights: The weight of each message's tokens in the loss, 0 for those that are not in it;
            None for 1 for all of the assistant's messages.
        parts: For messages whose content has parts of different weights, by their index: the parts,
            which are the content when joined, each with its weight. What the template prints before
            the first and after the last of them, such as the end-of-turn token, has their weights.
        template_kwargs: Variables of the chat template for this row, such as enable_thinking.
        plain: The row as plain text, used without a chat template; None if the format has no such
            form.
        findings: What the reader of the data should hear of.
    """

    messages: Sequence[Message]
    tools: list[Any] | None = None
    weights: Sequence[float] | None = None
    parts: Mapping[int, Parts] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    plain: PlainText | None = None
    findings: tuple[Finding, ...] = ()

    def weight(self, i: int) -> float:
        """Return the weight in the loss of message ``i``; only the assistant's have one."""
        if self.messages[i]["role"] != "assistant":
            return 0.0
        return 1.0 if self.weights is None else float(self.weights[i])


Row = Conversation | PlainText


def has_system(row: Conversation) -> bool:
    """Whether the conversation has a system message."""
    return any(message["role"] == "system" for message in row.messages)


def with_system(row: Conversation, text: str) -> Conversation:
    """Return ``row`` with a system message before the others; it then has no plain form."""
    return replace(
        row,
        messages=[{"role": "system", "content": text}, *row.messages],
        weights=None if row.weights is None else [0.0, *row.weights],
        parts={i + 1: parts for i, parts in row.parts.items()},
        plain=None,
    )


def scaled(row: Row, factor: float) -> Row:
    """Return ``row`` with the weights of all its tokens in the loss multiplied by ``factor``."""
    if factor == 1:
        return row
    if isinstance(row, PlainText):
        return replace(row, segments=[(text, weight * factor) for text, weight in row.segments])
    plain = row.plain and scaled(row.plain, factor)
    assert not isinstance(plain, Conversation)
    return replace(
        row,
        weights=[row.weight(i) * factor for i in range(len(row.messages))],
        parts={i: [(t, w * factor) for t, w in parts] for i, parts in row.parts.items()},
        plain=plain,
    )


def validated(row: Row) -> Row:
    """Return a row that a user's function has made.

    Raises:
        RowError: If a message has no text or tool calls, or a role that no chat template has.
    """
    if isinstance(row, PlainText):
        return row
    for message in row.messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        said = role is not None and (
            isinstance(message.get("content"), str) or message.get("tool_calls")
        )
        if role not in ("system", "developer", "user", "assistant", "tool") or not said:
            raise RowError(
                "not a message",
                f"{message!r:.80}; a Conversation holds {{'role': 'user', 'content': text}}, with"
                " the role system, user, assistant or tool",
            )
    return row
