"""One-dimensional .npy files that are read or written in parts."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NpyReader:
    """Reads parts of a one-dimensional .npy file.

    The file is not memory-mapped: pages of a mapped file count as memory of the process once they
    are read, so an epoch over a large file would appear to need memory for all of it.
    """

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r")
        self.length, self.dtype, self._start = len(array), array.dtype, array.offset
        self._file = path.open("rb", buffering=0)

    def read(self, start: int, end: int) -> NDArray[Any]:
        """Return the values with the indices ``start`` to ``end - 1``."""
        size = self.dtype.itemsize
        offset = self._start + start * size
        return np.frombuffer(
            os.pread(self._file.fileno(), (end - start) * size, offset), self.dtype
        )


class NpyWriter:
    """Appends to a one-dimensional .npy file, whose padded header has room for the final length."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype, self.length = path.open("wb"), dtype, 0
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Write ``values`` at the end."""
        self.file.write(values.astype(self.dtype).tobytes())
        self.length += len(values)

    def close(self) -> int:
        """Write the length into the header, sync the file, and return its size in bytes."""
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
