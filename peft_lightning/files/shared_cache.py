"""A cache folder that several users share: one's own entries beside those of others."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from peft_lightning.messages import UserError

DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def own_name(name: str) -> str:
    """Return the name of this user's entry, where one of that name is another's."""
    return f"{name}-{os.getuid()}"


def is_denied(error: OSError) -> bool:
    """Whether the system refuses something because of whose it is, or on which disk."""
    return error.errno in DENIED


def is_closed(folder: Path) -> bool:
    """Whether a folder is there, and another user's who lets nobody read it."""
    return folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)


def cannot_be_used(folder: Path, error: OSError) -> UserError:
    """Return the error for a cache folder in which this user can write nothing."""
    return UserError(
        f"the cache folder {folder} cannot be written: {error.strerror}; give data.cache_dir a "
        "folder of your own"
    )
