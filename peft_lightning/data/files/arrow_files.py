"""Parquet and Arrow files: their rows as plain Python values.

Arrow gives all objects of a column the union of their keys, with null for those that a row does not
have. These nulls are left out of objects inside columns; a column that is null stays.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from peft_lightning.data.files.data_files import DataFile
from peft_lightning.data.records import LocatedRecord, Record, RowError
from peft_lightning.messages import UserError

ROWS = 1024  # rows decoded at a time
_IPC_FILE = b"ARROW1"
_FEATHER_1 = b"FEA1"

Convert = Callable[[Any], Any]


def read_parquet(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read the rows of a Parquet file in batches."""
    import pyarrow.parquet  # slow to import

    def batches() -> Iterator[Any]:
        yield from pyarrow.parquet.ParquetFile(file.path).iter_batches(ROWS)

    return _located(batches(), file, "a Parquet file")


def read_arrow(file: DataFile, encoding: str | None) -> Iterator[LocatedRecord]:
    """Read the rows of an Arrow file: the IPC file format (Feather), or the stream format."""
    return _located(_ipc_batches(file), file, "an Arrow file")


def num_rows(file: DataFile) -> int | None:
    """Return the number of rows by the metadata; None if the file is damaged."""
    import pyarrow.parquet

    try:
        if file.kind == "parquet":
            return int(pyarrow.parquet.read_metadata(file.path).num_rows)
        return sum(batch.num_rows for batch in _open_ipc(file))
    except (pyarrow.ArrowException, OSError, UserError):  # the reader reports it
        return None


def plain_rows(batches: Iterable[Any]) -> Iterator[Record | RowError]:
    """Yield the rows of record batches or tables of one schema as plain values.

    Dates, times, decimals and UUIDs become text, bytes too if they are UTF-8, maps become objects,
    and JSON that Arrow stores as text is parsed.

    Raises:
        UserError: If two columns or two keys of an object have the same name.
    """
    converters: dict[str, Convert] | None = None
    for batch in batches:
        if converters is None:
            names = batch.schema.names
            if len(set(names)) < len(names):
                raise UserError(f"duplicate column name: {names}")
            found = {field.name: _converter(field.type) for field in batch.schema}
            converters = {name: convert for name, convert in found.items() if convert is not None}
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            try:
                rows = part.to_pylist()
            except UnicodeDecodeError:
                rows = [_single_row(part, i) for i in range(part.num_rows)]
            for row in rows:
                if isinstance(row, dict):
                    for name, convert in converters.items():
                        if row[name] is not None:
                            row[name] = convert(row[name])
                yield row


def _single_row(batch: Any, index: int) -> Record | RowError:
    try:
        row: Record = batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return RowError("invalid UTF-8")
    return row


def _located(batches: Iterator[Any], file: DataFile, kind: str) -> Iterator[LocatedRecord]:
    import pyarrow

    number = 0
    if file.columns is not None:
        batches = (batch.select(list(file.columns)) for batch in batches)
    try:
        for record in plain_rows(batches):
            number += 1
            yield record, f"{file.path}: row {number}"
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        problem = f"damaged after row {number}" if number else f"not {kind}"
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file.path}: {problem}, {first_line}") from error


def _ipc_batches(file: DataFile) -> Iterator[Any]:
    for batch in _open_ipc(file):
        batch.validate(full=True)  # reading invalid offsets would end the process
        yield batch


def _open_ipc(file: DataFile) -> Iterator[Any]:
    import pyarrow

    with file.path.open("rb") as content:
        magic = content.read(len(_IPC_FILE))
    if magic.startswith(_FEATHER_1):
        raise UserError("Feather of version 1, write it again: pyarrow.feather.write_feather")
    source = pyarrow.memory_map(str(file.path))
    if magic != _IPC_FILE:
        yield from pyarrow.ipc.open_stream(source)
        return
    reader = pyarrow.ipc.open_file(source)
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _converter(kind: Any) -> Convert | None:
    """Return what makes values of an Arrow type plain; None if they are."""
    from pyarrow import types

    if types.is_struct(kind):
        return _of_struct(kind)
    if types.is_map(kind):
        return _of_map(kind)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _converter(kind.value_type)
    if hasattr(kind, "value_type"):  # lists of all kinds
        inner = _converter(kind.value_type)
        if inner is None:
            return None
        return lambda values: [None if v is None else inner(v) for v in values]
    if hasattr(kind, "storage_type"):
        return _of_extension(kind)
    if types.is_temporal(kind) or types.is_decimal(kind):
        return str
    if "binary" in str(kind):
        return _text_or_bytes
    return None


def _of_struct(kind: Any) -> Convert:
    fields = {field.name: _converter(field.type) or _unchanged for field in kind}
    return lambda value: {k: fields[k](v) for k, v in value.items() if v is not None}


def _of_map(kind: Any) -> Convert:
    of_value = _converter(kind.item_type) or _unchanged
    return lambda pairs: {str(k): None if v is None else of_value(v) for k, v in pairs}


def _of_extension(kind: Any) -> Convert | None:
    if kind.extension_name == "arrow.json":
        return _parsed_json
    if kind.extension_name == "arrow.uuid":
        return str
    return _converter(kind.storage_type)


def _unchanged(value: Any) -> Any:
    return value


def _parsed_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # the format refuses text where it needs an object
        return text


def _text_or_bytes(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
