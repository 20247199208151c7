"""The text of a column or message: text as it is, numbers as they are written, nothing else."""

import json
import math
from functools import lru_cache
from typing import Any

from peft_lightning.data.records import Finding, Record, RowError


def require_column(record: Record, column: str) -> Any:
    """Return the value of ``column``.

    Raises:
        RowError: If there is no such column or it is null.
    """
    value = record.get(column)
    if value is not None:
        return value
    if column in record:
        raise RowError(f"column {column!r} is null", "write text, or leave the row out")
    raise RowError(
        f"no column {column!r}",
        f"there are {list(record)}; `data.columns: {{{column}: NAME}}` says which is meant",
    )


def require_text(record: Record, column: str, findings: list[Finding]) -> str:
    """Return the text of ``column``; see ``as_text``.

    Raises:
        RowError: If there is none.
    """
    value = require_column(record, column)
    return value if isinstance(value, str) else as_text(value, column, findings)


def as_text(value: Any, name: str, findings: list[Finding]) -> str:
    """Return text as it is, and a number or truth value as JSON writes it.

    A list of one such value, as some data sets have for their answers, is that value.

    Args:
        value: Any value of a row.
        name: The name of its column or key.
        findings: Is extended if the value is not text.

    Raises:
        RowError: If the value is something else.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], (str, int, float)):
        findings.append(_finding("list of one value taken as the value", name))
        return as_text(value[0], name, findings)
    if isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        findings.append(_finding("number taken as text", name))
        try:
            return json.dumps(value)
        except ValueError:  # an integer of thousands of digits
            raise RowError(f"{name!r} is not text", "a number too long to write") from None
    raise not_text_error(name, value)


def not_text_error(name: str, value: Any) -> RowError:
    """Return the error of a value that should be text."""
    kind = type(value).__name__
    if isinstance(value, float):
        return RowError(f"{name!r} is not text", f"it is {value}; write text or leave the row out")
    like = ", such as a string of JSON" if isinstance(value, (dict, list)) else ""
    return RowError(f"{name!r} is not text", f"it is {kind}; write it as text{like}")


def require_not_empty(value: str, column: str) -> str:
    """Return ``value``.

    Raises:
        RowError: If it is empty or only white space.
    """
    if not value or value.isspace():
        raise RowError(f"empty {column}", "write its text, or leave the row out")
    return value


_finding = lru_cache(Finding)  # one object for each kind and name
