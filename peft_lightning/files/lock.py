"""A folder that one process at a time works in: a lock of the operating system."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO


def lock_folder(folder: Path, name: str, say: Callable[[str], object]) -> IO[str] | str:
    """Lock a folder for this process; it is made if there is none.

    The lock is the system's: it goes with its process however that ends, and child processes do
    not inherit it. It also holds between machines where the folder is on NFS. The file stays; what
    it says is of use only while it is locked.

    Args:
        folder: The folder.
        name: Of the file in it that is locked.
        say: Is told if the file system has no locks, where nothing is refused.

    Returns:
        The open file, to be closed in the end; or who has locked it, in words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / name).open("a+", encoding="utf-8")
    if not _lock(file, folder, say):
        file.seek(0)
        with file:
            return file.read() or "just started"
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _lock(file: IO[str], folder: Path, say: Callable[[str], object]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            say(f"{folder} has no locks: see that no other run trains in it")
            return True
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        return False
    return True
