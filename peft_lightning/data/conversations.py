"""What a row is: a conversation or plain text, and the check of messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_lightning.data.sources import RowError

ROLES = ("system", "developer", "user", "assistant", "tool")

Message = dict[str, Any]


@dataclass(frozen=True)
class PlainText:
    """Text that no chat template touches.

    Args:
        segments: Pieces of the text in order, each with whether its tokens are trained on.
    """

    segments: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template.

    Args:
        messages: With "role" and "content", as OpenAI and HF templates have them.
        tools: JSON schemas of the tools the assistant may call; handed to the template.
        untrained: Indices of the assistant's messages that are not trained on.
        plain: The same as plain text, where the format defines one: it is used when there is no
            chat template.
    """

    messages: Sequence[Message]
    tools: list[Any] | None = None
    untrained: frozenset[int] = frozenset()
    plain: PlainText | None = None


Row = Conversation | PlainText


def conversation(turns: Any, tools: Any = None) -> Conversation:
    """Check messages of OpenAI's form and bring them into the form chat templates take.

    Text parts are joined, a tool call's arguments are parsed from JSON (templates print them), and
    ``weight: 0`` on an assistant's message leaves it out of the loss, as OpenAI has it.

    Raises:
        RowError: If a message is malformed or the assistant does not have the last word.
    """
    if not isinstance(turns, list) or not turns:
        what = "empty" if isinstance(turns, list) else type(turns).__name__
        raise RowError("messages are not a list of messages", f"got {what}")
    cleaned = [_message(turn) for turn in turns]
    if cleaned[-1]["role"] != "assistant":
        if all(message["role"] != "assistant" for message in cleaned):
            raise RowError("no assistant turn", f"roles {[m['role'] for m in cleaned]}")
        raise RowError("last message not from the assistant", f"it is {cleaned[-1]['role']}'s")
    weights = [message.pop("weight", 1) for message in cleaned]
    if any(weight not in (0, 1) for weight in weights):
        raise RowError("a message's weight is neither 0 nor 1", f"weights {weights}")
    untrained = (i for i, m in enumerate(cleaned) if m["role"] == "assistant" and not weights[i])
    return Conversation(cleaned, parse_json(tools, "tools") or None, frozenset(untrained))


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("a message is not an object", f"got {type(turn).__name__}")
    message = {key: value for key, value in turn.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        known = f"'role' is one of {', '.join(ROLES)}"
        raise RowError("unknown role" if role else "a message without a role", f"{role!r}; {known}")
    if isinstance(content := message.get("content"), list):
        message["content"] = "".join(map(_text_part, content))
    elif content is not None and not isinstance(content, str):
        raise not_text("content", content)
    if message.get("tool_calls"):
        message["tool_calls"] = [
            _tool_call(call) for call in parse_json(message["tool_calls"], "calls")
        ]
    elif "content" not in message:
        raise RowError("a message without content", f"role {role}")
    elif role == "assistant":
        not_empty(message["content"], "assistant turn")
    return message


def _text_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part["text"], str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowError(
        "a part of a message is not text", f"it is {kind!r}; only text can be trained on"
    )


def _tool_call(call: Any) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RowError("a tool call is not an object", f"got {type(call).__name__}")
    inner = call.get("function", call)
    if not isinstance(inner, Mapping) or "name" not in inner:
        raise RowError("a tool call without a name", f"it has {sorted(call)}")
    function = {
        **inner,
        "arguments": parse_json(inner.get("arguments") or {}, "tool call's arguments"),
    }
    return {**call, "function": function} if "function" in call else function


def parse_json(value: Any, name: str) -> Any:
    """Return ``value``, parsed if it is text (Parquet and OpenAI hold objects as JSON text)."""
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"{name} are not JSON", f"{error.msg} at column {error.colno}") from error


def not_text(column: str, value: Any) -> RowError:
    """Return the reason why ``value`` cannot stand where text is wanted."""
    hint = "; write it as a string of JSON" if isinstance(value, (dict, list)) else ""
    return RowError(f"{column!r} is not text", f"it is {type(value).__name__}{hint}")


def not_empty(value: str, column: str) -> str:
    """Return ``value``; raise RowError if there is nothing but white space in it."""
    if not value.strip():
        raise RowError(f"empty {column}")
    return value
