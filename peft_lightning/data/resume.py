"""Where a resumed run goes on in the data, and whether it may."""

import sys
from typing import Any

ROWS_KEEP_THEIR_ORDER = {"batch_size", "number of ranks"}  # whatever these are


def resume_point(
    saved: dict[str, Any], now: dict[str, Any], allow_changed_data: bool
) -> tuple[int, int, bool]:
    """Return the epoch, the number of its batches that are finished, and whether batches changed.

    Args:
        saved: The DataModule's state in the checkpoint.
        now: What that state says of data and batching in this run.
        allow_changed_data: Whether the data may be other than it was: the epoch then goes on at
            the same number of its batches.

    Returns:
        The epoch; a position in the batches it had, for an epoch that is done one behind any
        batch, since Lightning may go back to it and must find none left; and whether the epoch has
        the same rows in the same order now, but in other batches.

    Raises:
        ValueError: If the data is other than it was, or, within an epoch, what the order of its
            rows depends on; names what it was and is.
    """
    data = differences(saved["data"], now["data"])
    if data and not allow_changed_data:
        raise ValueError(
            f"the checkpoint was made with other data: hash {saved['data_hash']:.12} of"
            f" {saved['files']}, now {now['data_hash']:.12} of {now['files']}"
            f" ({'; '.join(data)}). Give the data it was made with, or set"
            " data.allow_changed_data to true; --ckpt_path none begins anew"
        )
    done = saved["position"] >= saved["batches"]
    old, new = saved["batching"], now["batching"]
    changes = differences(old, new)
    changed = {name for name in old if old[name] != new.get(name)}
    limited = saved["limited"] or now["limited"]
    movable = changed <= ROWS_KEEP_THEIR_ORDER and not data and not limited
    if changes and not done and saved["position"] and not movable:
        why = data + ["limit_train_batches is set"] * limited
        raise ValueError(
            f"the checkpoint was made within an epoch (batch {saved['position']} of"
            f" {saved['batches']}), where the order of the rows cannot change:"
            f" {'; '.join(changes + why)}. A checkpoint of an epoch's end allows it"
        )
    return saved["epoch"], sys.maxsize if done else saved["position"], bool(changes) and movable


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return what differs between two nested states, as "name was old, is new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in old for d in differences(old[k], new.get(k), f"{name} {k}".strip())]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        return [d for i, pair in pairs for d in differences(*pair, f"{name} {i}")]
    return [] if old == new else [f"{name} was {old!s:.40}, is {new!s:.40}"]
