"""Whether an adapter is loaded into the base model that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError


def require_base(
    folder: str | Path,
    facts: Mapping[str, Any],
    base_fingerprint: Mapping[str, Any] | None,
    remedy: str = "Load that one, or pass allow_base_mismatch=True",
) -> None:
    """Raise UserError if an adapter was trained on another base; the message names both.

    Warns if ``facts`` have no fingerprint, as in HF PEFT's folders.
    """
    expected = facts["base_fingerprint"]
    if base_fingerprint and not expected:
        warnings.warn(
            f"{folder} has no fingerprint of its base, as HF PEFT's folders: whether it was "
            "trained on this one is not checked",
            stacklevel=3,
        )
    if expected and base_fingerprint and expected != base_fingerprint:
        keys = {**expected, **base_fingerprint}
        differences = ", ".join(
            f"{k}: {expected.get(k)!r} expected, {base_fingerprint.get(k)!r} here"
            for k in keys
            if expected.get(k) != base_fingerprint.get(k)
        )
        raise UserError(
            f"{folder} was trained on another base model, {facts['base_model']} ({differences}). "
            + remedy
        )
