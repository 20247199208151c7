"""Rows as JSON text: parsed, and refused where the text says more than Python keeps of it.

Python's parser takes the last of two equal keys, and half a surrogate pair as a character that no
tokenizer takes. ``exactly`` finds both, and takes half as long again.
"""

import json
from typing import Any

from peft_lightning.data.files.json_structure import KeyCounter
from peft_lightning.data.records import MAX_ROW_SIZE, Record, RowError


class _Repeated(dict[str, Any]):
    """An object one of whose keys occurs twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    repeated, seen = _Repeated(value), set()
    for key, _ in pairs:
        if key in seen:
            repeated.key = key
        seen.add(key)
    return repeated


_parse = json.JSONDecoder().raw_decode
_parse_marking = json.JSONDecoder(object_pairs_hook=_object).raw_decode


def parse_json(text: str, exactly: bool = False) -> Any:
    """Parse a JSON text without blanks around it.

    NaN and Infinity are numbers, as Python writes them.

    Args:
        text: The text.
        exactly: Whether ``problem_of`` shall find keys that occur twice in the value.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        RecursionError: If it is nested too deeply.
        ValueError: For an integer of thousands of digits.
    """
    value, end = (_parse_marking if exactly else _parse)(text)
    if end != len(text):
        blanks = len(text[end:]) - len(text[end:].lstrip())
        raise json.JSONDecodeError("Extra data", text, end + blanks)
    return value


def plain_row(line: bytes, codec: str, num_keys: int, counter: KeyCounter) -> Record | None:
    """Return the row of a line, or None where ``parse_row`` is to say what is wrong with it.

    Args:
        line: The line, in the encoding ``codec``.
        codec: Its encoding.
        num_keys: The number of keys in the line, of ``written_keys``.
        counter: Counts those of the row.
    """
    if len(line) > MAX_ROW_SIZE:
        return None
    try:
        text = line.decode(codec).strip()
        value, end = _parse(text)
        if end == len(text) and type(value) is dict and counter.has_keys(value, num_keys):
            return value
    except (ValueError, RecursionError):
        pass
    return None


def parse_row(line: bytes, codec: str = "utf-8") -> Record:
    """Return the row of a line.

    Args:
        line: The line, in the encoding ``codec``.
        codec: Its encoding.

    Raises:
        RowError: If it is not a JSON object, or one that cannot be used.
        UnicodeDecodeError: If it is in another encoding.
    """
    if len(line) > MAX_ROW_SIZE:
        detail = f"{len(line):,} bytes; a row has at most {MAX_ROW_SIZE:,}"
        raise RowError("a line that is too long", detail)
    try:
        return require_row(parse_json(line.decode(codec).strip(), exactly=True), exactly=True)
    except json.JSONDecodeError as error:
        if b"\0" in line:
            detail = f"the first is byte {line.index(0) + 1} of the line"
            raise RowError("NUL bytes", detail) from None
        raise RowError("invalid JSON", f"{error.msg} at column {error.colno}") from None
    except (RowError, UnicodeDecodeError):
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise RowError("invalid JSON", str(error)) from None
    except RecursionError:
        raise RowError("invalid JSON", "nested too deeply") from None


def require_row(value: Any, exactly: bool) -> Record:
    """Return a parsed value that is a row.

    Raises:
        RowError: If it is not an object, or ``problem_of`` finds something.
    """
    if not isinstance(value, dict):
        found = type(value).__name__
        raise RowError("not an object", f"got {found}, a row is {{column: value, ...}}")
    problem = problem_of(value) if exactly else None
    if problem is not None:
        raise problem
    return value


def repeated_key(value: Any) -> str | None:
    """Return a key that occurs twice in a parsed object itself, not in what it holds."""
    return value.key if isinstance(value, _Repeated) else None


def problem_of(value: Any) -> RowError | None:
    """Return the error for a repeated key or half a surrogate pair anywhere in a parsed value."""
    stack: list[tuple[Any, str]] = [(value, "")]
    while stack:
        value, place = stack.pop()
        texts: list[str] = []
        if isinstance(value, str):
            texts = [value]
        elif isinstance(value, dict):
            if isinstance(value, _Repeated):
                where = f" in {place}" if place else ""
                detail = f"{value.key!r}{where}; which value is meant is unclear, keep one"
                return RowError("a repeated key", detail)
            texts = list(value)
            stack += [(v, f"{place}.{k}" if place else k) for k, v in value.items()]
        elif isinstance(value, list):
            stack += [(v, f"{place}[{i}]") for i, v in enumerate(value)]
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                escape = f"\\u{ord(text[error.start]):04x}"
                where = f" in {ascii(place)[1:-1]}" if place else ""
                detail = f"{escape}{where} is not a character, such as a cut emoji; remove it"
                return RowError("half of a surrogate pair", detail)
    return None
