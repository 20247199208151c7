"""A list of turns to a conversation: which of them continue each other, and where it ends."""

from collections.abc import Mapping
from typing import Any

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.conversations import Conversation, Message, Parts
from peft_lightning.data.rows.json_text import parse_json
from peft_lightning.data.rows.loss_flags import parse_loss_mask
from peft_lightning.data.rows.roles import ROLES
from peft_lightning.data.rows.turn_pairs import with_pairs_as_turns
from peft_lightning.data.rows.turns import loss_of, parse_turn


def parse_turns(
    value: Any,
    roles: Mapping[str, str] = ROLES,
    loss_mask: Any = None,
    num_prompt_turns: int = 0,
) -> Conversation:
    """Convert turns to a conversation that ends with the assistant's last message.

    Args:
        value: The turns, perhaps as JSON text.
        roles: Names of roles, of ``roles_with``.
        loss_mask: A flag of the loss for each turn.
        num_prompt_turns: The first turns that are not in the loss. If the last of them is the
            assistant's, the next one continues its text.

    Raises:
        RowError: If a turn is malformed, or none is the assistant's.
    """
    turns = parse_json(value, "messages")
    if not isinstance(turns, list) or not turns:
        what = "an empty one" if turns == [] else f"{type(turns).__name__}"
        right = "write [{'role': 'user', 'content': ...}, {'role': 'assistant', 'content': ...}]"
        raise RowError("messages are not a list of messages", f"got {what}; {right}")
    turns = with_pairs_as_turns(turns)
    mask = None if loss_mask is None else parse_loss_mask(loss_mask, len(turns))
    messages: list[Message] = []
    weights: list[float] = []
    parts: dict[int, Parts] = {}
    findings: list[Finding] = []
    for i, value in enumerate(turns):
        turn = parse_turn(value, roles, findings, None if mask is None else mask[i])
        weight, turn_parts = loss_of(turn)
        in_prompt = i < num_prompt_turns
        if in_prompt and turn.message["role"] == "assistant":
            if turn.weight:
                findings.append(Finding("flag on a turn of the prompt"))
            weight, turn_parts = 0.0, None
        follows = bool(messages) and messages[-1]["role"] == "assistant" == turn.message["role"]
        if follows and i == num_prompt_turns and not messages[-1].get("tool_calls"):
            message, turn_parts = _continued(messages.pop(), turn.message, weight, turn_parts)
            weights.pop()
        elif follows and turn.is_call:
            message = _with_calls(messages.pop(), turn.message["tool_calls"])
            if weights.pop() != weight:
                raise RowError(
                    "tool calls of one turn have different flags of the loss",
                    "write the same flags on calls that follow each other",
                )
        else:
            message = turn.message
        if turn_parts:
            parts[len(messages)] = turn_parts
        messages.append(message)
        weights.append(weight)
    return _ended(messages, weights, parts, findings)


def _continued(
    before: Message, message: Message, weight: float, parts: Parts | None
) -> tuple[Message, Parts | None]:
    """Join the assistant's text at the end of a prompt and the completion that continues it."""
    if before.get("reasoning_content") and message.get("reasoning_content"):
        raise RowError("two thoughts in one turn", "of the prompt and the completion; keep one")
    start, rest = before["content"], message["content"]
    joined = {**before, **message, "content": start + (rest or "") if start else rest}
    if not start or not weight:
        return joined, parts
    return joined, [(start, 0.0), *(parts or ([(rest, weight)] if rest else []))]


def _with_calls(message: Message, calls: list[Any]) -> Message:
    content = message["content"] or None
    return {**message, "content": content, "tool_calls": [*message.get("tool_calls", ()), *calls]}


def _ended(
    messages: list[Message],
    weights: list[float],
    parts: dict[int, Parts],
    findings: list[Finding],
) -> Conversation:
    """Leave out what follows the assistant's last message, and check that its turns say something.

    Raises:
        RowError: If no message is the assistant's, or one in the loss is empty.
    """
    end = len(messages)
    while end and messages[end - 1]["role"] != "assistant":
        end -= 1
    if not end:
        roles = f"the roles are {', '.join(message['role'] for message in messages)}"
        raise RowError(
            "no assistant turn", f"{roles}; add the answer, or name its role in data.roles"
        )
    if end < len(messages):
        findings.append(Finding("turns after the last answer left out"))
    for message, weight in zip(messages[:end], weights, strict=False):
        if weight and not _says_something(message):
            raise RowError(
                "empty assistant turn", "write its text, or weight: 0 to leave it out of the loss"
            )
    plain = all(w == (m["role"] == "assistant") for m, w in zip(messages, weights, strict=True))
    return Conversation(
        messages[:end],
        weights=None if plain else weights[:end],
        parts=parts,
        findings=tuple(findings),
    )


def _says_something(message: Message) -> bool:
    content = message["content"]
    spoken = bool(content) and not content.isspace()
    return spoken or bool(message.get("tool_calls") or message.get("reasoning_content"))
