"""A turn of a row, in any of its known forms, to a message and its weight in the loss."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.content import Pieces, parse_content, split_by_train_detail
from peft_lightning.data.rows.conversations import Message, Parts
from peft_lightning.data.rows.loss_flags import (
    TURN_FLAGS,
    combined_weight,
    contradiction,
    parse_flag,
)
from peft_lightning.data.rows.roles import CALL, parse_role
from peft_lightning.data.rows.tool_calls import parse_tool_calls
from peft_lightning.data.tokens.reasoning import thought_of

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")  # OpenAI's and ShareGPT's
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TRAIN_DETAILS = ("train_detail", "training_detail")  # axolotl's
PASSED = frozenset(("name", "tool_call_id"))  # what most chat templates read besides
UNTRAINED_FLAG = "flag on a turn that is not the assistant's"

_finding = lru_cache(Finding)  # one object for each kind and key


class Turn(NamedTuple):
    """A turn.

    Args:
        message: The message of the conversation.
        weight: Its weight in the loss; None if no flag gives one.
        pieces: Its content in pieces if they have flags of their own.
        is_call: Whether the turn is nothing but tool calls, so that it continues the one before.
    """

    message: Message
    weight: float | None = None
    pieces: Pieces = []  # noqa: RUF012  (never changed)
    is_call: bool = False


def parse_turn(value: Any, roles: Mapping[str, str], findings: list[Finding], in_loss: Any) -> Turn:
    """Convert a turn.

    Args:
        value: The turn.
        roles: Names of roles, of ``roles_with``.
        findings: Is extended by the keys and flags that have no effect.
        in_loss: Its flag in the row's ``loss_mask``.

    Raises:
        RowError: If the turn is malformed.
    """
    if not isinstance(value, Mapping):
        right = "write {'role': 'user', 'content': ...}"
        raise RowError("a message is not an object", f"got {type(value).__name__}; {right}")
    said = {key: item for key, item in value.items() if item is not None}
    role, raw = _role(said, roles), _content(said)
    if not said and isinstance(raw, str) and role != CALL and in_loss is None:
        return Turn({"role": role, "content": raw})  # as nearly all turns are
    flags = {key: said.pop(key) for key in sorted(said.keys() & TURN_FLAGS)}
    if in_loss is not None:
        flags["loss_mask"] = in_loss
    detail = {key: said.pop(key) for key in TRAIN_DETAILS if key in said}
    is_call = role == CALL
    calls = _take_calls(said)
    if is_call and raw not in (None, "") and calls:
        raise RowError("tool calls twice", "in the content and the tool_calls; keep one")
    if is_call:
        calls, raw = raw or calls, None
    content = parse_content(raw, findings)
    role = "assistant" if is_call else role
    message: Message = {"role": role, "content": content.text}
    if role != "assistant":
        if content.thought:
            raise RowError(f"a thought in a {role} message", "only the assistant's are trained on")
        findings += [_finding(UNTRAINED_FLAG, key) for key in detail]
        return _turn_of_others(message, calls, flags, content.pieces, said, findings)
    if thought := _take_thought(said, content.thought):
        inline = thought_of(message).text  # between <think> and </think>
        if inline and inline != thought.strip():
            raise RowError("a message with two thoughts", "<think> and another one; keep one")
        message |= {} if inline else {"reasoning_content": thought}
    if parsed := parse_tool_calls(calls, findings) if calls else []:
        message["tool_calls"] = parsed
    elif content.text is None and not thought and value.keys().isdisjoint(CONTENT_KEYS) and said:
        raise _no_content(value)
    elif is_call:
        raise RowError("a turn of tool calls without one", "write {'name': ..., 'arguments': {}}")
    elif content.text is None:
        message["content"] = ""
    pieces = content.pieces
    for name, spans in detail.items():
        if pieces:
            raise RowError(f"{name} on a list of parts", "write the content as one text")
        pieces = split_by_train_detail(content.text or "", spans, name)
    weight = combined_weight(flags)
    if pieces and weight is not None:
        none, some = all(w == 0 for _, w in pieces), any(w for _, w in pieces)
        if none if weight else some:
            raise contradiction({**flags, next(iter(detail), "those of its parts"): "the opposite"})
    message |= _passed(said, findings)
    return Turn(message, weight, pieces, is_call)


def _role(said: dict[str, Any], roles: Mapping[str, str]) -> str:
    if "from" not in said and "role" in said:
        return parse_role(said.pop("role"), roles)
    named = [said.pop(key) for key in ROLE_KEYS if key in said]
    if not named:
        raise RowError(
            "a message without a role",
            f"it has {list(said)}; write {{'role': 'user', 'content': ...}}, or from and value",
        )
    role = parse_role(named[0], roles)
    if len(named) > 1 and parse_role(named[1], roles) != role:
        raise RowError("a message with two roles", f"{named[0]!r} and {named[1]!r:.40}; keep one")
    return role


def _content(said: dict[str, Any]) -> Any:
    if "value" not in said:
        return said.pop("content", None)
    contents = [said.pop(key) for key in CONTENT_KEYS if key in said]
    if len(contents) > 1 and contents[0] != contents[1]:
        raise RowError("a message with both content and value", "and they differ; keep one")
    return contents[0] if contents else None


def _no_content(turn: Mapping[str, Any]) -> RowError:
    return RowError(
        "a message without content", f"it has {list(turn)}; write its text as 'content'"
    )


def _take_calls(said: dict[str, Any]) -> Any:
    """Take the tool calls, or OpenAI's older ``function_call``, out of what a turn says."""
    calls, older = said.pop("tool_calls", None), said.pop("function_call", None)
    if older and calls:
        raise RowError("both tool_calls and function_call", "in one message; keep the tool_calls")
    return calls or older


def _take_thought(said: dict[str, Any], of_parts: str) -> str:
    thoughts = {key: said.pop(key) for key in THOUGHTS if key in said}
    if of_parts:
        thoughts["content"] = of_parts
    for key, thought in thoughts.items():
        if not isinstance(thought, str):
            raise RowError(
                f"{key!r} is not text", f"it is {type(thought).__name__}; write it as text"
            )
    different = {thought: key for key, thought in thoughts.items() if thought}
    if len(different) > 1:
        keys = " and ".join(different.values())
        raise RowError("a message with two thoughts", f"{keys} differ; keep one of them")
    return next(iter(different), "")


def _turn_of_others(
    message: Message,
    calls: Any,
    flags: dict[str, Any],
    pieces: Pieces,
    said: dict[str, Any],
    findings: list[Finding],
) -> Turn:
    """Convert a turn that is not the assistant's and thus never in the loss."""
    role = message["role"]
    if calls:
        raise RowError(f"tool calls on a {role} message", "only the assistant calls tools")
    if message["content"] is None:
        raise _no_content({"role": role, **said})
    trained = [key for key, value in flags.items() if value != "" and parse_flag(key, value)]
    if any(weight for _, weight in pieces):
        trained.append("content")
    findings += [_finding(UNTRAINED_FLAG, key) for key in trained]
    return Turn(message | _passed(said, findings))


def _passed(said: dict[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """Return the other keys of a turn, which the chat template may read."""
    passed = {key: value for key, value in said.items() if value not in ("", [], {})}
    findings += [_finding("unused key", key) for key in passed if key not in PASSED]
    return passed


def loss_of(turn: Turn) -> tuple[float, Parts | None]:
    """Return the weight in the loss of a turn, and its parts if they have different weights.

    Only the assistant's turns have a weight: 1 if no flag gives another one.
    """
    if turn.message["role"] != "assistant":
        return 0.0, None
    base = 1.0 if turn.weight is None else turn.weight
    if not turn.pieces:
        return base, None
    parts: list[tuple[str, float]] = []
    for text, flag in turn.pieces:
        weight = base if flag is None else base * flag
        if parts and parts[-1][1] == weight:
            parts[-1] = (parts[-1][0] + text, weight)
        elif text:
            parts.append((text, weight))
    if len(parts) == 1:
        return parts[0][1], None
    return base, parts or None
