"""One-dimensional .npy files that are read in parts, or grow."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NpyReader:
    """A one-dimensional .npy file that is read in parts.

    Not mapped: pages of a mapped file that were read once count as this process's memory, so that
    an epoch over a large file would seem to need all of it.
    """

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r")
        self.length, self.dtype, self._start = len(array), array.dtype, array.offset
        self._file = path.open("rb", buffering=0)

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Return the values from ``start`` to before ``end``."""
        size = self.dtype.itemsize
        place = self._start + start * size
        return np.frombuffer(os.pread(self._file.fileno(), (end - start) * size, place), self.dtype)


class NpyWriter:
    """A one-dimensional .npy file that grows; numpy leaves room in the header for its length."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype, self.length = path.open("wb"), dtype, 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        self.file.write(values.astype(self.dtype).tobytes())
        self.length += len(values)

    def close(self) -> int:
        """Write the length and bring all to disk; return the file's size in bytes."""
        size = self.file.tell()
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return size

    def _write_header(self) -> None:
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)
