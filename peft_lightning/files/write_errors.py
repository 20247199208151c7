"""Why something could not be written, under the name by which the user knows it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}  # errors of writing alone
_FULL = 2**20  # bytes; with less than that left a disk is full
_FAILED = re.compile(
    r"requested and \d+ written|inline_container|PytorchStreamWriter"  # numpy's and torch's
)


@contextmanager
def writing(path: str | Path, temporary: str | Path | None = None) -> Iterator[None]:
    """Let an error of writing name ``path``: libraries name a temporary file, or none.

    Args:
        path: The file or folder that is written, as the user gave it.
        temporary: Where it is written until it is whole.

    Raises:
        OSError: If the system refuses to write, also where a library raises another error.
    """
    try:
        yield
    except Exception as error:
        number = _number(error, Path(path))
        named = str(getattr(error, "filename", None) or path)
        is_own = temporary is None or named == str(path) or str(temporary) in named
        if number is None or not (is_own or number in REFUSED):
            raise
        reason = getattr(error, "strerror", None) or os.strerror(number)
        raise OSError(number, reason, str(path)) from error


def _number(error: Exception, path: Path) -> int | None:
    """Return the system's number of an error of writing, None for another error."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if type(error).__name__ == "SafetensorError" and (
        found := re.search(r"\(os error (\d+)\)", str(error))
    ):
        return int(found[1])
    if isinstance(error, OSError | RuntimeError) and _FAILED.search(str(error)):
        near = next(folder for folder in path.absolute().parents if folder.is_dir())
        state = os.statvfs(near)
        is_full = state.f_bavail * state.f_bsize < _FULL
        return errno.ENOSPC if is_full else errno.EIO
    return None
