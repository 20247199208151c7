"""Files and folders that are replaced as a whole.

After a crash in ``atomic_folder`` or ``atomic_file`` the old content or the new one is there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from peft_lightning.files.write_errors import writing
from peft_lightning.messages import UserError, shortened

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h: paths are relative to the working directory
_PREVIOUS = ".previous"


@contextlib.contextmanager
def atomic_folder(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a new folder to write into; it takes the place of ``path`` when the block ends.

    The two are exchanged in one step where the file system can. Where it cannot, the old folder
    is ``<path>.previous`` for the moment between two renames, and ``existing_folder`` finds it
    there. If the block raises, the new folder is removed and ``path`` is as it was.

    Args:
        path: The folder.
        previous: Where the old one goes, in the same way; None if it is to be removed.

    Raises:
        FileExistsError: If ``path`` is a file.
    """
    given, path = path, Path(os.path.realpath(path))  # a link stays, its target is replaced
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: a folder is to be written there")
    with writing(given, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
    try:
        with writing(given, temporary):
            yield temporary
            _sync_tree(temporary)
            _replace(path, temporary, previous)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # what cannot be removed, the next one does
        raise


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the name of a file to write; it takes the place of ``path`` when the block ends.

    If the block raises, the new file is removed and ``path`` is as it was.
    """
    given, path = path, Path(os.path.realpath(path))
    with writing(given, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
    try:
        with writing(given, temporary):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` that is removed when the block ends.

    If the process is killed, the next one that asks for the same removes it.
    """
    with writing(path, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        temporary.mkdir()
    try:
        with writing(path, temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary)


def atomic_text(path: str | Path, text: str) -> None:
    """Write ``text`` to the file ``path``, in place of what it holds; all of it or nothing."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_folder(path: Path) -> None:
    """Remove a folder, as a whole: a killed process leaves no part of it under its name."""
    if path.is_dir():
        hidden = _temporary(path)
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def existing_folder(path: str | Path) -> Path:
    """Return the folder ``path``, or the one that a crash while replacing it has left.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path = Path(path)
    for candidate in (path, _previous(Path(os.path.realpath(path)))):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(
        f"{path} is a file, not a folder" if path.exists() else f"there is no folder {path}"
    )


def require_replaceable(folder: Path, file: str, kind: str) -> None:
    """Raise UserError unless ``folder`` may be replaced.

    It may if it is empty or holds a ``kind`` with its ``file``, has no folders in it, and is no
    checkpoint from which training continues.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / file).is_file():
        raise UserError(f"{folder} is not empty, and holds no {kind}: give another folder to write")
    if inside := sorted(p.name for p in folder.iterdir() if p.is_dir()):
        raise UserError(
            f"{folder} has folders in it, {shortened(inside)}, which would be removed: give "
            "another folder to write"
        )
    if (folder / "trainer_state.pt").is_file():
        raise UserError(
            f"{folder} is a checkpoint, which training continues from: give another folder to write"
        )


def _replace(path: Path, new: Path, previous: Path | None) -> None:
    """Move ``new`` to ``path``, and what was there to ``previous``, or remove it."""
    old = _put(new, path)
    if old is not None and previous is not None:
        old = _put(old, previous)
    for left in (old, _previous(path), previous and _previous(previous)):
        if left is not None and left.exists():
            shutil.rmtree(left)


def _put(new: Path, path: Path) -> Path | None:
    """Move the folder ``new`` to ``path``; return where the one that was there is now."""
    old: Path | None = None
    if not path.exists():
        os.rename(new, path)
    elif _exchange(new, path):
        old = new
    else:
        old = _previous(path)
        if old.exists():
            shutil.rmtree(old)
        os.rename(path, old)
        os.rename(new, path)
    _sync(path.parent)
    return old


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _previous(path: Path) -> Path:
    return path.with_name(path.name + _PREVIOUS)


def _temporary(path: Path) -> Path:
    """Return a free name beside ``path``, and remove what killed processes left there."""
    start, end = f".{path.name}.", f".{socket.gethostname()}.tmp"
    for left in path.parent.iterdir():
        owner = left.name.removeprefix(start).removesuffix(end)
        if left.name == f"{start}{owner}{end}" and owner.isdigit() and not _runs(int(owner)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)  # another process may remove it too
            else:
                left.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}{end}")


def _runs(process: int) -> bool:
    """Whether another process of this machine may still be writing."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # the latter for a number that none can have
        return False
    except PermissionError:
        pass
    return True


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    safetensors writes files that their owner alone may read: they get the mode of other files.
    """
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) == 0o600:
        mask = os.umask(0o077)
        os.umask(mask)
        path.chmod(0o666 & ~mask)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- checksums ----------------------------------------------------------------------------------
