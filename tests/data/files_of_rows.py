"""Files of rows, written in every way that they are read."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet

from peft_lightning.data.files.sources import find_source

ROWS = [{"prompt": "안녕", "completion": "a\nb"}, {"prompt": "2", "completion": "c, d"}]


def lines(rows):
    return "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(separator=","):
    return f'prompt{separator}completion\n안녕{separator}"a\nb"\n2{separator}"c, d"\n'


def zstandard(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def lz4(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "lz4") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
    ".lz4": lz4,
}


def arrow_bytes(rows, stream=False):
    made = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with new(sink, made.schema) as writer:
        writer.write_table(made)
    return sink.getvalue().to_pybytes()


def parquet_bytes(rows):
    made = rows if isinstance(rows, pyarrow.Table) else pyarrow.Table.from_pylist(rows)
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(made, sink)
    return sink.getvalue().to_pybytes()


def content_of(name, rows=ROWS):
    """Return the bytes of a file of this name with ``rows``."""
    name = name.lower()
    for suffix, compress in COMPRESS.items():
        if name.endswith(suffix):
            return compress(content_of(name.removesuffix(suffix), rows))
    suffix = Path(name).suffix
    if suffix in (".jsonl", ".ndjson", ".jsonlines"):
        return lines(rows).encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix in (".csv", ".tsv"):
        return table("\t" if suffix == ".tsv" else ",").encode()
    if suffix in (".parquet", ".pq"):
        return parquet_bytes(rows)
    return arrow_bytes(rows)


def records(path, **options):
    """Return the records of a source; an error of a row is its text."""
    found = find_source(str(path), **options).records()
    return [r if isinstance(r, dict) else str(r) for r, _ in found]


def places(path, **options):
    """Return the locations of the rows of a source."""
    return [where for _, where in find_source(str(path), **options).records()]
