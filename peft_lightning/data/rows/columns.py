"""Columns of a file and the columns of a format that they stand for."""

import json
import string
from collections.abc import Iterable, Mapping
from typing import Any

from peft_lightning.data.records import Finding, Record, RowError
from peft_lightning.data.rows.column_paths import root_of, value_at
from peft_lightning.data.rows.text_values import as_text
from peft_lightning.messages import UserError, did_you_mean


def renamed(record: Record, columns: Mapping[str, str], optional: str = "") -> Record:
    """Return ``record`` with the columns of its format.

    Args:
        record: A row.
        columns: Columns of the format, each with the column of the row that stands for it, or with
            a path into one.
        optional: A column of the format that may be missing.

    Raises:
        RowError: If a path leads nowhere.
    """
    if not columns:
        return record
    sources = {root_of(source, record) for source in columns.values()}
    kept = {key: value for key, value in record.items() if key not in sources}
    for column, source in columns.items():
        try:
            kept[column] = value_at(record, source)
        except KeyError:
            kept.pop(column, None)
        except RowError:
            if column != optional:
                raise
    return kept


class PromptTemplate:
    """A template of prompts with columns in braces, such as ``Question: {question}``.

    A path into a column may stand for it: ``{answers.text[0]}``.

    A number is written as JSON writes it, a list or object as JSON text.

    Args:
        template: The template; two braces are one in the prompt.

    Raises:
        UserError: If the braces are not those of a template, or there is no column in it.
    """

    def __init__(self, template: str) -> None:
        self.template = template
        right = "write a column's name in braces, and {{ for a brace"
        try:
            fields = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(f"data.prompt {template!r}: {error}; {right}") from None
        if any(spec or conversion for _, _, spec, conversion in fields):
            raise UserError(f"data.prompt {template!r}: no format is known; {right}")
        self.columns = tuple(dict.fromkeys(n for _, n, _, _ in fields if n is not None))
        if not all(self.columns) or not self.columns:
            raise UserError(f"data.prompt {template!r} has no column; {right}")
        self._fields = [(text, name) for text, name, _, _ in fields]

    def require_columns(self, columns: Iterable[str], source: str) -> None:
        """Check that the columns of the template are among those of a source.

        Raises:
            UserError: If one is not; suggests a similar name.
        """
        columns = list(columns)
        if missing := [name for name in self.columns if root_of(name, columns) not in columns]:
            raise UserError(
                f"{source}: data.prompt has {{{missing[0]}}}, but the columns are {columns}"
                + did_you_mean(missing, columns)
            )

    def fill(self, record: Record, findings: list[Finding]) -> str:
        """Return the prompt of a row.

        Raises:
            RowError: If a column is missing or null.
        """
        pieces = []
        for text, name in self._fields:
            pieces.append(text)
            if name is not None:
                pieces.append(self._text(record, name, findings))
        return "".join(pieces)

    def _text(self, record: Record, name: str, findings: list[Finding]) -> str:
        try:
            value: Any = value_at(record, name)
        except KeyError:
            value = None
        if value is None:
            known = root_of(name, record) in record
            state = "is null" if known else f"is missing: there are {list(record)}"
            raise RowError(f"column {name!r} of data.prompt {state}", "write '' for no text")
        if isinstance(value, str):
            return value
        if isinstance(value, dict) or (isinstance(value, list) and len(value) != 1):
            findings.append(Finding("object written as JSON", name))
            return json.dumps(value, ensure_ascii=False, default=str)
        return as_text(value, name, findings)
