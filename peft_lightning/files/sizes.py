"""Sizes of files as users write them."""

from __future__ import annotations

import re

from peft_lightning.messages import UserError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(text: str) -> int:
    """Return 2000000000 for "2GB".

    Raises:
        UserError: If it is no size above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]i?B)", str(text), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UserError(f"max_shard_size must be a size such as 2GB or 500MB, got {text!r}")
    return size
