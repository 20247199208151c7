"""The two kinds of row, conversations and plain text, and the validation of messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_lightning.data.records import RowError

ROLES = ("system", "developer", "user", "assistant", "tool")

Message = dict[str, Any]


@dataclass(frozen=True)
class PlainText:
    """Text that is tokenized without a chat template.

    Args:
        segments: Pieces of the text in order, each with whether its tokens are in the loss.
    """

    segments: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class Conversation:
    """Messages that are rendered by a chat template.

    Args:
        messages: Dicts with "role" and "content", as in OpenAI's API and HF chat templates.
        tools: JSON schemas of the tools that the assistant may call, passed to the template.
        untrained: Indices of the assistant's messages that are not in the loss.
        plain: The row as plain text, used without a chat template; None if the format has no such
            form.
    """

    messages: Sequence[Message]
    tools: list[Any] | None = None
    untrained: frozenset[int] = frozenset()
    plain: PlainText | None = None


Row = Conversation | PlainText


def parse_conversation(turns: Any, tools: Any = None) -> Conversation:
    """Validate messages in OpenAI's form and convert them to the form of chat templates.

    Text parts are joined, and the arguments of tool calls are parsed from JSON, because templates
    print them. ``weight: 0`` on an assistant's message excludes it from the loss, as in OpenAI's
    fine-tuning format.

    Args:
        turns: The messages.
        tools: JSON schemas, as a list or as JSON text.

    Raises:
        RowError: If a message is malformed or the last one is not the assistant's.
    """
    if not isinstance(turns, list) or not turns:
        what = "empty" if isinstance(turns, list) else type(turns).__name__
        raise RowError("messages are not a list of messages", f"got {what}")
    cleaned = [_parse_message(turn) for turn in turns]
    if cleaned[-1]["role"] != "assistant":
        if all(message["role"] != "assistant" for message in cleaned):
            raise RowError("no assistant turn", f"roles {[m['role'] for m in cleaned]}")
        raise RowError("last message not from the assistant", f"it is {cleaned[-1]['role']}'s")
    weights = [message.pop("weight", 1) for message in cleaned]
    if any(weight not in (0, 1) for weight in weights):
        raise RowError("a message's weight is neither 0 nor 1", f"weights {weights}")
    untrained = (i for i, m in enumerate(cleaned) if m["role"] == "assistant" and not weights[i])
    return Conversation(cleaned, parse_json(tools, "tools") or None, frozenset(untrained))


def _parse_message(turn: Any) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("a message is not an object", f"got {type(turn).__name__}")
    message = {key: value for key, value in turn.items() if value is not None}
    role = message.get("role")
    if role not in ROLES:
        known = f"'role' is one of {', '.join(ROLES)}"
        raise RowError("unknown role" if role else "a message without a role", f"{role!r}; {known}")
    if isinstance(content := message.get("content"), list):
        message["content"] = "".join(map(_text_of_part, content))
    elif content is not None and not isinstance(content, str):
        raise not_text_error("content", content)
    if message.get("tool_calls"):
        message["tool_calls"] = [
            _parse_tool_call(call) for call in parse_json(message["tool_calls"], "calls")
        ]
    elif "content" not in message:
        raise RowError("a message without content", f"role {role}")
    elif role == "assistant":
        require_not_empty(message["content"], "assistant turn")
    return message


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part["text"], str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise RowError(
        "a part of a message is not text", f"it is {kind!r}; only text can be trained on"
    )


def _parse_tool_call(call: Any) -> dict[str, Any]:
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
    """Return ``value``, parsed if it is text, as Parquet files and OpenAI store objects."""
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise RowError(f"{name} are not JSON", f"{error.msg} at column {error.colno}") from error


def not_text_error(column: str, value: Any) -> RowError:
    """Return the error of a value that should be text."""
    hint = "; write it as a string of JSON" if isinstance(value, (dict, list)) else ""
    return RowError(f"{column!r} is not text", f"it is {type(value).__name__}{hint}")


def require_not_empty(value: str, column: str) -> str:
    """Return ``value``; raise RowError if it is empty or only white space."""
    if not value.strip():
        raise RowError(f"empty {column}")
    return value
