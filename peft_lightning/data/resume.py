"""Where a resumed run goes on in the data, and whether it may."""

import sys
from typing import Any


def resume_point(
    saved: dict[str, Any], now: dict[str, Any], allow_changed_data: bool
) -> tuple[int, int]:
    """Return the epoch and the number of its batches that are finished.

    Args:
        saved: The DataModule's state in the checkpoint.
        now: What that state says of data and batching in this run.
        allow_changed_data: Whether the data may be other than it was: the epoch then goes on at
            the same number of its batches.

    Returns:
        The epoch and a position; for an epoch that is done a position behind any batch, since
        Lightning may go back to it and must find no batch left, however many it has now.

    Raises:
        ValueError: If the data is other than it was, or, within an epoch, what the order of its
            batches depends on; names what it was and is.
    """
    data = differences(saved["data"], now["data"])
    if data and not allow_changed_data:
        raise ValueError(
            f"the checkpoint was made with other data: hash {saved['data_hash']:.12} of"
            f" {saved['files']}, now {now['data_hash']:.12} of {now['files']}"
            f" ({'; '.join(data)}). Give the data it was made with, or set"
            " data.allow_changed_data to true"
        )
    done = saved["position"] >= saved["batches"]
    changes = differences(saved["batching"], now["batching"])
    # Saved by on_train_batch_end on an epoch's last batch, Lightning would begin the next epoch at
    # this batch number if the number of batches had changed.
    last_batch = done and saved["within_batch"]
    if (last_batch and (changes or data)) or (not done and saved["position"] and changes):
        raise ValueError(
            f"the checkpoint was made within an epoch (batch {saved['position']} of"
            f" {saved['batches']}), where the order of the batches cannot change:"
            f" {'; '.join(changes + data)}. A checkpoint of an epoch's end allows it"
        )
    return saved["epoch"], sys.maxsize if done else saved["position"]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return what differs between two nested states, as "name was old, is new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in old for d in differences(old[k], new.get(k), f"{name} {k}".strip())]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        return [d for i, pair in pairs for d in differences(*pair, f"{name} {i}")]
    return [] if old == new else [f"{name} was {old!s:.40}, is {new!s:.40}"]
