"""The two kinds of row, conversations and plain text, and the validation of messages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft_lightning.data.records import Finding, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")

Message = dict[str, Any]


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
        messages: Dicts with "role" and "content", as in OpenAI's API and HF chat templates.
        tools: JSON schemas of the tools that the assistant may call, passed to the template.
        weights: The weight of each message's tokens in the loss, 0 for those that are not in it;
            None for 1 for all of the assistant's messages.
        parts: For messages whose content has parts of different weights, by their index: the parts,
            which are the content when joined, each with its weight.
        template_kwargs: Variables of the chat template for this row, such as enable_thinking.
        plain: The row as plain text, used without a chat template; None if the format has no such
            form.
        findings: What the reader of the data should hear of.
    """

    messages: Sequence[Message]
    tools: list[Any] | None = None
    weights: Sequence[float] | None = None
    parts: Mapping[int, Sequence[tuple[str, float]]] = field(default_factory=dict)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    plain: PlainText | None = None
    findings: tuple[Finding, ...] = ()

    def weight(self, i: int) -> float:
        """Return the weight in the loss of message ``i``; only the assistant's have one."""
        if self.messages[i]["role"] != "assistant":
            return 0.0
        return 1.0 if self.weights is None else float(self.weights[i])


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
    return Conversation(cleaned, parse_json(tools, "tools") or None, [float(w) for w in weights])


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
