"""Checksums of a folder's files, in a file that ``sha256sum --check`` reads too."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from peft_lightning.adapters.atomic import atomic_folder

SUMS_FILE = "SHA256SUMS"


@contextlib.contextmanager
def sealed_folder(path: str | Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield a folder to write into, as ``atomic_folder`` does, and add its files' checksums."""
    with atomic_folder(path, previous) as folder:
        yield folder
        files = sorted(file for file in folder.iterdir() if file.is_file())
        lines = [f"{_sha256(file)}  {file.name}\n" for file in files]
        (folder / SUMS_FILE).write_text("".join(lines), encoding="utf-8")


def require_undamaged(folder: Path, names: Iterable[str] | None = None) -> None:
    """Compare files with their checksums; a folder without checksums is taken as it is.

    Args:
        folder: Ours, or one that another program wrote.
        names: The files; all that have a checksum if None.

    Raises:
        ValueError: If one is missing, or has other content; names it.
    """
    sums = folder / SUMS_FILE
    if not sums.is_file():
        return
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if not expected:
        raise ValueError(f"{folder} is damaged: {SUMS_FILE} is empty")
    if outside := [name for name in expected if name in ("", "..") or "/" in name or "\0" in name]:
        raise ValueError(f"{folder} is damaged: {SUMS_FILE} names {outside[0]!r}, no file in it")
    for name in expected if names is None else names:
        file = folder / name
        if not file.is_file():
            if name in expected:
                raise ValueError(f"{folder} is damaged: {name} of its {SUMS_FILE} is not there")
        elif _sha256(file) != expected.get(name):
            raise ValueError(
                f"{folder} is damaged: {name} is not what was written. If it was changed on "
                f"purpose, remove {sums}"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
