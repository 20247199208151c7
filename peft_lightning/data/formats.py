"""Formats: one function each, from a record to a conversation or to plain text."""

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peft_lightning.data.conversations import (
    Conversation,
    PlainText,
    Row,
    conversation,
    not_empty,
    not_text,
)
from peft_lightning.data.sources import Record, RowError
from peft_lightning.messages import did_you_mean

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
# The prompt the Alpaca data was made for (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca)
ALPACA = (
    "Below is an instruction that describes a task{}. Write a response that appropriately"
    " completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)

Format = Callable[[Record], Row]
Rows = Iterator[tuple[Record | RowError, str]]  # with where they stand


def prompt_completion(record: Record) -> Row:
    """Columns ``prompt`` and ``completion``: text, or lists of messages; the completion trains."""
    prompt, completion = _column(record, "prompt"), _column(record, "completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _question_answer(prompt, completion, "completion", plain_prompt=prompt)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        column, value = (
            ("completion", completion) if isinstance(prompt, list) else ("prompt", prompt)
        )
        raise not_text(column, value)
    row = conversation([*prompt, *completion], record.get("tools"))
    given = (i for i in range(len(prompt)) if row.messages[i]["role"] == "assistant")
    return Conversation(row.messages, row.tools, row.untrained | frozenset(given))


def alpaca(record: Record) -> Row:
    """Columns ``instruction``, ``output`` and perhaps ``input``; the output trains."""
    instruction, output = _text(record, "instruction"), _text(record, "output")
    given = _text(record, "input") if record.get("input") is not None else ""
    if given.strip():
        context = ", paired with an input that provides further context"
        plain = ALPACA.format(context, instruction, f"### Input:\n{given}\n\n")
        return _question_answer(f"{instruction}\n\n{given}", output, "output", plain)
    return _question_answer(instruction, output, "output", ALPACA.format("", instruction, ""))


def messages(record: Record) -> Row:
    """Column ``messages`` as OpenAI has it, perhaps ``tools``; the assistant's turns train."""
    return conversation(_column(record, "messages"), record.get("tools"))


def sharegpt(record: Record) -> Row:
    """Column ``conversations`` of ``{from, value}``, perhaps ``system`` and ``tools``."""
    turns = _column(record, "conversations")
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
    return conversation(converted, record.get("tools"))


def text(record: Record) -> Row:
    """Column ``text``: all of it trains."""
    return PlainText([(not_empty(_text(record, "text"), "text"), True)])


REQUIRED_COLUMNS = {  # the columns that a format is recognised by
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "text": ("text",),
}
ANSWERS = {"prompt_completion": "completion", "alpaca": "output"}
FORMATS: dict[str, Format] = {
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
    "text": text,
}


def prompt_of(record: Record, name: str) -> Row:
    """Return ``record``'s row without its answer, which it may lack: what to generate from.

    Args:
        record: A row of data.
        name: Its format.

    Raises:
        RowError: If the rest of the row is malformed.
    """
    record = {**record, **({ANSWERS[name]: "."} if name in ANSWERS else {})}
    column = REQUIRED_COLUMNS[name][0] if name in ("messages", "sharegpt") else None
    if column is not None and isinstance(turns := record.get(column), list) and turns:
        role = turns[-1].get("role", turns[-1].get("from")) if isinstance(turns[-1], dict) else None
        if SHAREGPT_ROLES.get(str(role)) != "assistant":
            chat = {"role": "assistant", "content": "."}
            share = {"from": "gpt", "value": "."}
            record[column] = [*turns, chat if column == "messages" else share]
    row = find_format(name)(record)
    if isinstance(row, PlainText):
        prompt = list(itertools.takewhile(lambda segment: not segment[1], row.segments))
        return PlainText(prompt or row.segments)
    plain = row.plain and PlainText(row.plain.segments[:-1])
    return Conversation(row.messages[:-1], row.tools, plain=plain)


def detect_format(columns: Sequence[str], source: str, prompts_only: bool = False) -> str:
    """Return the name of the one format whose columns are all there.

    Args:
        columns: Of the first row.
        source: For the message.
        prompts_only: Whether the answers' columns may be missing.

    Raises:
        ValueError: If no format or several fit; says which columns there are and are needed.
    """
    there = set(columns)
    if prompts_only:
        there |= {c for name, c in ANSWERS.items() if REQUIRED_COLUMNS[name][0] in there}
    fits = [name for name, needed in REQUIRED_COLUMNS.items() if set(needed) <= there]
    if len(fits) == 1:
        return fits[0]
    problem = f"fit several formats ({', '.join(fits)})" if fits else "fit no format"
    needs = "; ".join(
        f"{name} needs {' and '.join(cols)}" for name, cols in REQUIRED_COLUMNS.items()
    )
    raise ValueError(
        f"{source}: the columns {list(columns)} {problem}. Name one with `format` ({needs}), or"
        " give the dotted path of your own function from a row to messages or text"
    )


def resolve_format(
    rows: Rows, name: str, source: str, prompts_only: bool = False
) -> tuple[str, list[str], Rows]:
    """Look at the first well-formed row.

    Returns:
        The format's name, told from its columns if ``name`` is "auto"; the columns; all rows.
    """
    head = []
    columns: list[str] = []
    for row in rows:
        head.append(row)
        if not isinstance(row[0], RowError):
            columns = list(row[0])
            break
    if name == "auto":  # without a well-formed row any will do
        name = detect_format(columns, source, prompts_only) if columns else "text"
    return name, columns, itertools.chain(head, rows)


def find_format(name: str) -> Format:
    """Return the format called ``name``, or the user's function at that dotted path.

    Raises:
        ValueError: If there is none; names the nearest.
    """
    if name in FORMATS:
        return FORMATS[name]
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise ValueError(
            f"no format {name!r}; there are auto, {', '.join(FORMATS)}, or the dotted path of a "
            "function of your own" + did_you_mean(name, [*FORMATS, "auto"])
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"format {name!r}: cannot import {module_name!r} ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"format {name!r}: no function {function_name!r} in {module_name}"
            + did_you_mean(function_name, dir(module))
        )
    return lambda record: _from_user(function, record, name)


def format_identity(name: str) -> str:
    """Return what a cache must know of a format: its name, with the source of a user's module."""
    if name in FORMATS:
        return name
    find_format(name)  # a friendly error if it is not there
    return name + "\n" + inspect.getsource(sys.modules[name.rpartition(".")[0]])


def _question_answer(prompt: str, answer: str, column: str, plain_prompt: str) -> Conversation:
    turns = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": not_empty(answer, column)},
    ]
    return Conversation(turns, plain=PlainText([(plain_prompt, False), (answer, True)]))


def _column(record: Record, column: str) -> Any:
    if column not in record:
        raise RowError(f"no column {column!r}", f"there are {list(record)}")
    if record[column] is None:
        raise RowError(f"column {column!r} is null")
    return record[column]


def _text(record: Record, column: str) -> str:
    value = _column(record, column)
    if not isinstance(value, str):
        raise not_text(column, value)
    return value


def _from_user(function: Callable[[Record], Any], record: Record, name: str) -> Row:
    """Call a user's function and take any of the forms it may return."""
    try:
        result = function(record)
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"{name} raised {type(error).__name__}", str(error)) from error
    if isinstance(result, (Conversation, PlainText)):
        return result
    if isinstance(result, str):
        return PlainText([(not_empty(result, "text"), True)])
    if isinstance(result, (list, tuple)) and result:
        if all(isinstance(item, dict) for item in result):
            return conversation(list(result))
        if all(_is_segment(item) for item in result):
            return PlainText(list(result))
    raise ValueError(
        f"format {name!r} returned {result!r:.80}; wanted text, a list of messages, a list of"
        " (text, trained) pairs, a Conversation or a PlainText (raise RowError to refuse a row)"
    )


def _is_segment(item: Any) -> bool:
    return isinstance(item, tuple) and [type(part) for part in item] == [str, bool]
