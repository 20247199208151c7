"""Hash of every byte of the files of a base; each is read once, as long as it does not change."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from peft_lightning.base_model.resolve import INDEX_FILE, cached_folder, shard_files
from peft_lightning.base_model.weights import SINGLE_FILE
from peft_lightning.files import atomic_text, sha256_of_file, sha256_of_json, user_cache
from peft_lightning.process.progress import Progress

SETTLED = 2.0  # seconds after which a file that changes has another time


def weights_hash(name: str, revision: str | None = None) -> str | None:
    """Return the hash of the files that a base's weights are in.

    What was read of a file is remembered in the user's cache folder with its size, times and inode,
    so that a base of many GB is read once.

    Args:
        name: A folder, a GGUF file, or a hub id whose files are in the hub's cache.
        revision: Branch, tag or commit of a hub id.

    Returns:
        The hash; None if there are no such files.
    """
    files = _weight_files(name, revision)
    if not files:
        return None
    with Progress(f"checking {Path(name).name}"):
        return sha256_of_json([_file_hash(file) for file in files])


def _weight_files(name: str, revision: str | None) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        cached = cached_folder(name, revision)
        if cached is None:
            return []
        path = cached
    if (path / SINGLE_FILE).is_file():
        return [path / SINGLE_FILE]
    return shard_files(path / INDEX_FILE) if (path / INDEX_FILE).is_file() else []


def _file_hash(file: Path) -> str:
    """Return the SHA-256 of a file, read if it is not what it was when it was read last."""
    status = file.stat()
    identity = [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]
    memory = user_cache("weights") / f"{sha256_of_json(str(file.resolve()))[:32]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["identity"] == identity:
            return str(known["sha256"])
    found = sha256_of_file(file)
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED:
        with suppress(OSError):  # a cache that cannot be written makes nothing wrong
            atomic_text(memory, json.dumps({"identity": identity, "sha256": found}))
    return found
