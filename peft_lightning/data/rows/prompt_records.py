"""A record to generate from: its completion is replaced, parsed, and left out again."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from peft_lightning.data.records import Record, RowError
from peft_lightning.data.rows.conversations import PlainText, Row
from peft_lightning.data.rows.formats import COMPLETION_COLUMNS, TURN_COLUMNS
from peft_lightning.data.rows.json_text import parse_json
from peft_lightning.data.rows.loss_flags import LABELS, ROW_FLAGS, TURN_FLAGS
from peft_lightning.data.rows.roles import CALL, parse_role
from peft_lightning.data.rows.turn_pairs import with_pairs_as_turns
from peft_lightning.data.rows.turns import CONTENT_KEYS, ROLE_KEYS, TRAIN_DETAILS


def with_placeholder(record: Record, name: str, roles: Mapping[str, str]) -> Record:
    """Return ``record`` with another completion and without flags of the loss."""
    record = {key: v for key, v in record.items() if key not in ROW_FLAGS and key != "loss_mask"}
    for label in LABELS:
        record.pop(label, None)
    if name in COMPLETION_COLUMNS:
        column = COMPLETION_COLUMNS[name]
        prompt = record.get("prompt")
        record[column] = "."
        if name == "prompt_completion" and isinstance(prompt, (list, dict)):
            turns = prompt if isinstance(prompt, list) else [prompt]
            record["prompt"] = [_without_flags(turn) for turn in turns]
        return record
    column = TURN_COLUMNS.get(name, "")
    turns = parse_json(record.get(column), "messages")
    if isinstance(turns, list) and turns:
        turns = [_without_flags(turn) for turn in with_pairs_as_turns(turns)]
        while turns and _role_of(turns[-1], roles) == CALL:
            turns.pop()
        if turns and _role_of(turns[-1], roles) == "assistant":
            turns.pop()
        record[column] = [*turns, {"role": "assistant", "content": "."}]
    return record


def _without_flags(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    turn = {key: v for key, v in turn.items() if key not in TURN_FLAGS and key not in TRAIN_DETAILS}
    for key in CONTENT_KEYS:
        if isinstance(turn.get(key), list):
            turn[key] = [_without_flags(part) for part in turn[key]]
    return turn


def _role_of(turn: Any, roles: Mapping[str, str]) -> str | None:
    named = [turn[key] for key in ROLE_KEYS if key in turn] if isinstance(turn, dict) else []
    try:
        return parse_role(named[0], roles) if named else None
    except RowError:
        return None


def without_completion(row: Row) -> Row:
    """Return ``row`` up to its completion."""
    if isinstance(row, PlainText):
        prompt = list(takewhile(lambda segment: not segment[1], row.segments))
        return replace(row, segments=prompt or row.segments)
    if row.messages[-1]["role"] != "assistant":  # made so by a user's function
        return row
    plain = row.plain and replace(row.plain, segments=row.plain.segments[:-1])
    last = len(row.messages) - 1
    messages = list(row.messages[:-1])
    if last in row.parts:  # the prompt ends with the start of the completion
        messages.append({**row.messages[-1], "content": row.parts[last][0][0]})
    return replace(row, messages=messages, weights=None, parts={}, plain=plain)
