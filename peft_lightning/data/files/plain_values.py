"""Values of Python objects as JSON has them: of rows that never were in a file."""

import datetime
import decimal
import enum
import hashlib
import json
import pickle
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from peft_lightning.data.files.json_rows import require_row
from peft_lightning.data.records import Record
from peft_lightning.messages import UserError

_PLAIN = (str, int, float, bool, type(None))
_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)


def plain_row(row: Any) -> Record:
    """Return a row with plain values, as if it had been read from JSON.

    Raises:
        RowError: If it is no mapping of columns to values.
    """
    return require_row(plain_value(row), exactly=True)


def plain_value(value: Any) -> Any:
    """Return lists for tuples and arrays, numbers for NumPy's, text for dates, the value of enums.

    Dates, times and decimals become the text that those of Parquet files do. What has no plain
    value is returned as it is.
    """
    if type(value) in _PLAIN:
        return value
    if isinstance(value, enum.Enum):
        return plain_value(value.value)
    if isinstance(value, Mapping):
        return {plain_value(key): plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain_value(value.tolist())
    if isinstance(value, str):
        return str(value)
    return str(value) if isinstance(value, _AS_TEXT) else value


class RowsHash:
    """A hash of the content of rows, the same in every process.

    Args:
        name: What the rows are called in an error.
    """

    def __init__(self, name: str) -> None:
        self._name, self._hash, self._count = name, hashlib.sha256(), 0

    def add(self, row: Any) -> None:
        """Add a row.

        Raises:
            UserError: If it holds something whose content cannot be told.
        """
        self._count += 1
        try:
            text = json.dumps(row, default=self._content, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{self._name}: row {self._count}: {error}") from error
        self._hash.update(text.encode() + b"\n")

    def hexdigest(self) -> str:
        """Return the hash."""
        return self._hash.hexdigest()

    def _content(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, set | frozenset):  # whose order differs between processes
            return {"set": sorted(map(repr, value))}
        try:
            return {type(value).__qualname__: pickle.dumps(value).hex()}
        except Exception as error:  # whatever a class of the user's raises
            raise UserError(
                f"{self._name}: row {self._count} holds a {type(value).__name__}, whose content "
                "cannot be told from another's: leave the column out, or make it text"
            ) from error
