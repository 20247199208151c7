"""Data formats: each is one function from a record to a ``Conversation`` or ``PlainText``."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft_lightning.data.conversations import (
    Conversation,
    PlainText,
    Row,
    not_text_error,
    parse_conversation,
    require_not_empty,
)
from peft_lightning.data.records import Record, RowError
from peft_lightning.messages import UserError, did_you_mean

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
# the prompt template of the Alpaca data (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca)
ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task{}. Write a response that appropriately"
    " completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)

Format = Callable[[Record], Row]


def prompt_completion(record: Record) -> Row:
    """Columns ``prompt`` and ``completion``, text or messages; the loss is on the completion."""
    prompt, completion = _require_column(record, "prompt"), _require_column(record, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _single_turn(prompt, completion, "completion", plain_prompt=prompt)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        column, value = (
            ("completion", completion) if isinstance(prompt, list) else ("prompt", prompt)
        )
        raise not_text_error(column, value)
    row = parse_conversation([*prompt, *completion], record.get("tools"))
    weights = [0.0 if i < len(prompt) else row.weight(i) for i in range(len(row.messages))]
    return replace(row, weights=weights)


def alpaca(record: Record) -> Row:
    """Columns ``instruction``, ``output``, optionally ``input``; the loss is on the output."""
    instruction, output = _require_text(record, "instruction"), _require_text(record, "output")
    input_text = _require_text(record, "input") if record.get("input") is not None else ""
    if input_text.strip():
        context = ", paired with an input that provides further context"
        plain = ALPACA_TEMPLATE.format(context, instruction, f"### Input:\n{input_text}\n\n")
        return _single_turn(f"{instruction}\n\n{input_text}", output, "output", plain)
    return _single_turn(instruction, output, "output", ALPACA_TEMPLATE.format("", instruction, ""))


def messages(record: Record) -> Row:
    """Column ``messages`` (OpenAI), optionally ``tools``; the loss is on the assistant's turns."""
    return parse_conversation(_require_column(record, "messages"), record.get("tools"))


def sharegpt(record: Record) -> Row:
    """Column ``conversations`` of ``{from, value}``, optionally ``system`` and ``tools``."""
    turns = _require_column(record, "conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError("column 'conversations' is not a list of objects")
    converted = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for turn in turns:
        if "from" not in turn or "value" not in turn:
            raise RowError("a turn without 'from' and 'value'", f"it has {sorted(turn)}")
        role = SHAREGPT_ROLES.get(str(turn["from"]))
        if role is None:
            known = ", ".join(SHAREGPT_ROLES)
            raise RowError("unknown role", f"{turn['from']!r}; 'from' is one of {known}")
        converted.append({"role": role, "content": turn["value"]})
    return parse_conversation(converted, record.get("tools"))


def text(record: Record) -> Row:
    """Column ``text``; the loss is on all of it."""
    return PlainText([(require_not_empty(_require_text(record, "text"), "text"), True)])


REQUIRED_COLUMNS = {  # a format is detected by these
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
COMPLETION_COLUMNS = {"prompt_completion": "completion", "alpaca": "output"}
FORMATS: dict[str, Format] = {
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
    "text": text,
}


def find_format(name: str) -> Format:
    """Return the format called ``name``, or the user's function at that dotted path.

    Raises:
        UserError: If there is none; suggests a similar name.
    """
    if name in FORMATS:
        return FORMATS[name]
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise UserError(
            f"no format {name!r}; there are auto, {', '.join(FORMATS)}, or the dotted path of a "
            "function of your own" + did_you_mean(name, [*FORMATS, "auto"])
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"format {name!r}: cannot import {module_name!r} ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"format {name!r}: no function {function_name!r} in {module_name}"
            + did_you_mean(function_name, dir(module))
        )
    return lambda record: _call_user_format(function, record, name)


def format_cache_key(name: str) -> str:
    """Return the part of the cache key for a format: its name, and a user module's source code."""
    if name in FORMATS:
        return name
    find_format(name)  # raises if it does not exist
    return name + "\n" + inspect.getsource(sys.modules[name.rpartition(".")[0]])


def _single_turn(prompt: str, answer: str, column: str, plain_prompt: str) -> Conversation:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": require_not_empty(answer, column)},
    ]
    return Conversation(turns, plain=PlainText([(plain_prompt, False), (answer, True)]))


def _require_column(record: Record, column: str) -> Any:
    if column not in record:
        raise RowError(f"no column {column!r}", f"there are {list(record)}")
    if record[column] is None:
        raise RowError(f"column {column!r} is null")
    return record[column]


def _require_text(record: Record, column: str) -> str:
    value = _require_column(record, column)
    if not isinstance(value, str):
        raise not_text_error(column, value)
    return value


def _call_user_format(function: Callable[[Record], Any], record: Record, name: str) -> Row:
    """Call a user's function and convert its result to a row."""
    try:
        result = function(record)
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"{name} raised {type(error).__name__}", str(error)) from error
    if isinstance(result, (Conversation, PlainText)):
        return result
    if isinstance(result, str):
        return PlainText([(require_not_empty(result, "text"), True)])
    if isinstance(result, (list, tuple)) and result:
        if all(isinstance(item, dict) for item in result):
            return parse_conversation(list(result))
        if all(_is_segment(item) for item in result):
            return PlainText(list(result))
    raise UserError(
        f"format {name!r} returned {result!r:.80}; expected text, a list of messages, a list of"
        " (text, trained) pairs, a Conversation or a PlainText (raise RowError to refuse a row)"
    )


def _is_segment(item: Any) -> bool:
    return isinstance(item, tuple) and [type(part) for part in item] == [str, bool]
