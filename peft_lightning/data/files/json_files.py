"""JSON files: one object per line, an array of rows, or an object that holds arrays of rows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.files.json_rows import (
    parse_json,
    parse_row,
    plain_row,
    problem_of,
    repeated_key,
    require_row,
)
from peft_lightning.data.files.json_structure import (
    KeyCounter,
    num_keys,
    surrogate_escapes,
    written_keys,
)
from peft_lightning.data.files.split_names import split_of
from peft_lightning.data.files.text_files import TextFile
from peft_lightning.data.records import LocatedRecord, Record, RowError
from peft_lightning.messages import UserError

_TURN_KEYS = ({"role", "content"}, {"from", "value"}, {"role", "tool_calls"})


def read_jsonl(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read one object per line; blank lines are skipped. An array of rows is read as one."""
    with TextFile(file, encoding) as text_file:
        if text_file.head().lstrip().startswith("["):
            array = _array_of(file, encoding)
            if array is not None:
                yield from array
                return
        yield from _read_lines(text_file)


def read_json(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read an array of rows, an object with one, a single row, or JSONL in a .json file."""
    with TextFile(file, encoding) as text_file:
        try:
            content, exactly = _parse_document(text_file, file)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data" and _begins_with_a_row(error.doc):
                with TextFile(file, encoding) as again:
                    yield from _read_lines(again)
                return
            several = "; write one object per line" if error.msg == "Extra data" else ""
            raise UserError(
                f"{file.path}:{error.lineno}: invalid JSON, {error.msg} at column"
                f" {error.colno}{several}"
            ) from None
    layout = layout_of(content)
    repeated = None if layout.is_row else repeated_key(content)
    if layout.problem or repeated is not None:
        problem = layout.problem or f"the key {repeated!r} occurs twice; keep one"
        raise UserError(f"{file.path}: {problem}")
    keys = file.keys or layout.keys
    arrays = {key: content[key] for key in keys} if keys else {"": content}
    for key, rows in arrays.items():
        where = f"{file.path}: {key} item" if len(keys) > 1 else f"{file.path}: item"
        for number, row in enumerate([rows] if layout.is_row else rows, start=1):
            yield _checked(row, exactly), f"{where} {number}"


@dataclass(frozen=True)
class Layout:
    """Where the rows of a JSON document are.

    Args:
        keys: The keys whose arrays are rows.
        is_row: Whether the whole document is one row.
        problem: What is wrong and what would be right, if there are no rows.
    """

    keys: tuple[str, ...] = ()
    is_row: bool = False
    problem: str = ""

    @property
    def has_splits(self) -> bool:
        """Whether all arrays of rows are named like splits."""
        return bool(self.keys) and all(map(split_of, self.keys))


def layout_of(content: Any) -> Layout:
    """Return where the rows of a parsed document are."""
    expected = "expected an array of rows, or an object with exactly one array of rows"
    if isinstance(content, list):
        return Layout()
    if not isinstance(content, dict):
        return Layout(problem=f"expected an array of rows, got {type(content).__name__}")
    arrays = tuple(k for k, v in content.items() if isinstance(v, list) and any(map(_is_row, v)))
    if any(_are_turns(content[key]) for key in arrays):
        return Layout(is_row=True)
    if len(arrays) == 1 or (arrays and all(map(split_of, arrays))):
        return Layout(arrays)
    if arrays:
        return Layout(problem=f"an object with the keys {list(content)}; {expected}")
    if content and _is_table_of_columns(content):
        return Layout(
            problem="columns of a table, not rows; write rows, as pandas does by"
            ' df.to_json(path, orient="records", lines=True)'
        )
    if all(value == [] for value in content.values()):
        return Layout(tuple(content), problem="" if content else f"an empty object; {expected}")
    return Layout(is_row=True)


def layout_of_file(file: DataFile, encoding: str | None) -> Layout | None:
    """Return where the rows of a .json file are, if it begins as an object; else None.

    None also for a file with one object per line, and for one that cannot be parsed.
    """
    with TextFile(file, encoding) as text_file:
        head = text_file.head().lstrip()
        if not head.startswith("{") or ("\n" in head and _begins_with_a_row(head)):
            return None
        try:
            return layout_of(_parse_document(text_file, file)[0])
        except (json.JSONDecodeError, UserError):
            return None


def _parse_document(text_file: TextFile, file: DataFile) -> tuple[Any, bool]:
    """Return the parsed content, and whether its rows are to be checked for what it says twice."""
    text = text_file.text().strip() or "[]"
    try:
        content = parse_json(text)
        whole = [text.encode()]
        exactly = bool(surrogate_escapes(whole)) or written_keys(whole) != [num_keys([content])]
        return (parse_json(text, exactly=True) if exactly else content), exactly
    except RecursionError:
        raise UserError(f"{file.path}: invalid JSON, nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise UserError(f"{file.path}: invalid JSON, {error}") from None


def _read_lines(text_file: TextFile) -> Iterator[LocatedRecord]:
    path = str(text_file.file.path)
    number, counter = 1, KeyCounter()
    for lines in text_file.blocks_of_lines():
        keys, halves, codec = written_keys(lines), surrogate_escapes(lines), text_file.codec
        for i, line in enumerate(lines):
            record: Record | RowError | None = plain_row(line, codec, keys[i], counter)
            if record is None:
                record = _parsed_exactly(line, text_file)
            elif halves and halves[i]:
                record = problem_of(record) or record
            if record is not None:
                yield record, f"{path}:{number + i}"
        number += len(lines)


def _parsed_exactly(line: bytes, text_file: TextFile) -> Record | RowError | None:
    """Return the row of a line, or its error; None for a blank line."""
    if line.isspace():
        return None
    try:
        return parse_row(line, text_file.codec)
    except RowError as error:
        return error
    except UnicodeDecodeError as error:
        return text_file.row_error(f"byte {error.start + 1} of the line", line)


def _array_of(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord] | None:
    """Return the rows of a file that is one array; None if it is several values."""
    with TextFile(file, encoding) as text_file:
        try:
            content, exactly = _parse_document(text_file, file)
        except json.JSONDecodeError as error:
            if error.msg == "Extra data":
                return None
            raise UserError(
                f"{file.path}:{error.lineno}: invalid JSON, {error.msg} at column {error.colno}"
            ) from None
    return (
        (_checked(row, exactly), f"{file.path}: item {number}")
        for number, row in enumerate(content, start=1)
    )


def _checked(row: Any, exactly: bool) -> Record | RowError:
    if type(row) is dict and not exactly:
        return row
    try:
        return require_row(row, exactly)
    except RowError as error:
        return error


def _begins_with_a_row(text: str) -> bool:
    try:
        return bool(parse_row(text.lstrip().partition("\n")[0].encode("utf-8", "surrogatepass")))
    except (RowError, UnicodeDecodeError):
        return False


def _is_row(value: Any) -> bool:
    return isinstance(value, dict)


def _are_turns(rows: list[Any]) -> bool:
    """Whether the elements of an array are the turns of a conversation, not rows."""
    first = next(row for row in rows if isinstance(row, dict))
    return any(keys <= first.keys() for keys in _TURN_KEYS)


def _is_table_of_columns(content: dict[str, Any]) -> bool:
    """Whether an object maps each column to all its values, by number or in an array."""
    values = list(content.values())
    if all(isinstance(v, dict) and v and all(k.isdigit() for k in v) for v in values):
        return True
    lists = all(isinstance(v, list) and len(v) > 1 for v in values)
    return lists and len(values) > 1 and len({len(v) for v in values}) == 1
