"""Checksums: folders that are checked against their SHA256SUMS, and hashes of files and facts."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from peft_lightning.files.atomic import atomic_folder
from peft_lightning.messages import UserError

SUMS_FILE = "SHA256SUMS"  # the format of ``sha256sum --check``
_CLOCK_STEP = 10**8  # ns, more than the resolution of a file's times


@contextlib.contextmanager
def sealed_folder(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a folder to write into, as ``atomic_folder`` does, and add its files' checksums."""
    with atomic_folder(path, previous) as folder:
        yield folder
        files = sorted(file for file in folder.iterdir() if file.is_file())
        lines = [f"{sha256_of_file(file)}  {file.name}\n" for file in files]
        (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def require_undamaged(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with their checksums; a folder without checksums is taken as it is.

    Args:
        folder: Ours, or one that another program wrote.
        names: The files; all that have a checksum if None.

    Raises:
        UserError: If one is missing, or has other content; names it.
    """
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return
    expected = read_checksums(folder)
    if not expected:
        raise UserError(f"{folder} is damaged: {SUMS_FILE} is empty")
    if outside := [name for name in expected if name in ("", "..") or "/" in name or "\0" in name]:
        raise UserError(f"{folder} is damaged: {SUMS_FILE} names {outside[0]!r}, no file in it")
    for name in expected if names is None else names:
        file = folder / name
        if not file.is_file():
            if name in expected:
                raise UserError(f"{folder} is damaged: {name} of its {SUMS_FILE} is not there")
        elif sha256_of_file(file) != expected.get(name):
            raise UserError(
                f"{folder} is damaged: {name} is not what was written. If it was changed on "
                f"purpose, remove {sums}"
            )


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksums of the files of a sealed folder, by name.

    Raises:
        OSError: If the folder has none.
    """
    lines = (folder / SUMS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def sha256_of_json(facts: Any) -> str:
    """Return the SHA-256 of facts, by their JSON text with sorted keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def sha256_of_file(file: Path) -> str:
    """Return the checksum of a file's content, in hexadecimal digits.

    A process reads a file once, as long as its size and times do not change.
    """
    status, now = file.stat(), time.time_ns()
    times = (status.st_mtime_ns, status.st_ctime_ns)
    is_recent = now - max(times) < _CLOCK_STEP  # it may change again without another time
    identity = (status.st_dev, status.st_ino, status.st_size, *times, now if is_recent else 0)
    return _read_sha256(os.path.realpath(file), identity)


@functools.lru_cache(maxsize=256)
def _read_sha256(file: str, identity: tuple[int, ...]) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
