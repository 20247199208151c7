"""Files that are compressed as a whole, opened as streams of the bytes they stand for."""

import bz2
import gzip
import io
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, cast

COMPRESSIONS = {
    ".gz": "gzip",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".zst": "zstandard",
    ".zstd": "zstandard",
    ".lz4": "lz4",
}
MAGIC = {  # how the content begins, and the suffix of such files
    b"\x1f\x8b": (".gz", "gzip"),
    b"BZh": (".bz2", "bzip2"),
    b"\xfd7zXZ\0": (".xz", "xz"),
    b"\x28\xb5\x2f\xfd": (".zst", "zstandard"),
    b"\x04\x22\x4d\x18": (".lz4", "lz4"),
    b"PAR1": (".parquet", "Parquet"),
    b"ARROW1": (".arrow", "Arrow"),
    b"PK\x03\x04": (".zip", "zip or a spreadsheet"),
}
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading a damaged file raises


def open_decompressed(path: Path, compression: str | None) -> io.BufferedReader:
    """Open a file for reading, from its first byte and with ``peek``.

    Args:
        path: The file.
        compression: A value of ``COMPRESSIONS``, or None.

    Raises:
        OSError: Or another error of ``DAMAGE``, also while the stream is read.
    """
    if compression is None:
        return path.open("rb")
    if compression in ("zstandard", "lz4"):
        import pyarrow  # slow to import

        name = "zstd" if compression == "zstandard" else compression
        return io.BufferedReader(cast(Any, pyarrow.input_stream(str(path), compression=name)))
    opened: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return cast(io.BufferedReader, opened[compression](path, "rb"))


def content_of(stream: IO[bytes], limit: int) -> bytes:
    """Return up to ``limit`` bytes of the beginning of a stream."""
    blocks, size = [], 0
    while size < limit and (block := stream.read(min(limit - size, 2**20))):
        blocks.append(block)
        size += len(block)
    return b"".join(blocks)
