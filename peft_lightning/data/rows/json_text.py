"""Objects stored as JSON text, as in columns of Parquet files and in OpenAI's tool calls."""

import json
from typing import Any

from peft_lightning.data.records import RowError


def parse_json(value: Any, name: str) -> Any:
    """Return ``value``, parsed if it is text; empty text is None.

    Args:
        value: Any value of a row.
        name: What it is, for the message.

    Raises:
        RowError: If the text is not JSON.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        python = ", this looks like Python's repr" * ("{'" in value)
        raise RowError(
            f"{name} are not JSON",
            f"{error.msg} at column {error.colno}{python}; write them with json.dumps",
        ) from error
    except (RecursionError, ValueError) as error:  # an integer of thousands of digits
        raise RowError(
            f"{name} are not JSON", "nested too deeply or a number too long; write less"
        ) from error
    if "\\ud" in value.lower():  # perhaps half of a surrogate pair, which no tokenizer takes
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RowError("half of a surrogate pair", f"in {name}; write the character") from error
    return parsed
