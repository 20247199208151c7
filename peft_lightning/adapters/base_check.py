"""Whether an adapter is loaded into the base model that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError

_VALUES = {"weights", "quantized"}  # of a fingerprint: what quantising changes


def require_base(
    folder: str | Path,
    facts: Mapping[str, Any],
    base_fingerprint: Mapping[str, Any] | None,
    remedy: str = "Give that one, or set allow_base_mismatch to true",
) -> None:
    """Raise UserError if an adapter was trained on another base; the message names both.

    A base is known by its fingerprint, not by its name. That of quantised weights cannot be told
    from that of the plain ones, so there the shapes and names of all weights decide, in a line.

    Warns if ``facts`` have no fingerprint, as in HF PEFT's folders.
    """
    expected, found = facts["base_fingerprint"], base_fingerprint
    if found and not expected:
        warnings.warn(
            f"{folder} has no fingerprint of its base, as HF PEFT's folders: whether it was "
            "trained on this one is not checked",
            stacklevel=3,
        )
    if not expected or not found or expected == found:
        return
    keys = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if "quantized" in keys and _VALUES.issuperset(keys):
        kinds = ["quantised" if f.get("quantized") else "plain" for f in (expected, found)]
        warnings.warn(
            f"{folder} was trained over the {kinds[0]} weights of {facts['base_model']}, and these "
            f"are {kinds[1]}: they have the same names and shapes, and answers can differ by what "
            "quantising changes",
            stacklevel=3,
        )
        return
    raise UserError(
        f"{folder} was trained on another base model, {facts['base_model']}: "
        f"{differences(expected, found)}. {remedy}"
    )


def differences(expected: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> str:
    """Return what tells two bases apart, in words: of their hashes only whether they differ."""
    expected, found = expected or {}, found or {}
    for key, text in (
        ("architecture", "it is a {}, and this is a {}"),
        ("parameters", "it has {} parameters, and this has {}"),
        ("shapes", "its weights have other names or shapes than these"),
    ):
        if expected.get(key) != found.get(key):
            return text.format(expected.get(key), found.get(key))
    return "its weights have other values than these"
