"""Names of splits: which files, folders, keys or splits of the hub are meant for which data."""

import re
from collections.abc import Sequence

from peft_lightning.messages import UserError, shortened

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "eval": ("eval", "evaluation"),
}
MEANT = {  # for each option of the data, the splits it takes, the best first
    "train": ("train",),
    "val": ("validation", "eval"),
    "test": ("test", "eval"),
    "predict": ("test",),
}


def split_of(name: str) -> str | None:
    """Return the split that a name is of: its only word in ``SPLIT_WORDS``, in any case."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = set(re.split(r"[^a-z]+", spaced.lower()))
    found = [split for split, names in SPLIT_WORDS.items() if not words.isdisjoint(names)]
    return found[0] if len(found) == 1 else None


def choose_split(names: Sequence[str], purpose: str | None, source: str) -> list[str]:
    """Return the splits that are meant for ``purpose``.

    Args:
        names: The splits that there are, such as "train_sft".
        purpose: A key of ``MEANT``; None for all splits.
        source: What has these splits, for the message.

    Returns:
        One name, or all for ``predict`` where none is for testing, and where no name is a split's.

    Raises:
        UserError: If none or several are meant; names them and how one is written.
    """
    if purpose is None or not any(map(split_of, names)):
        return list(names)
    for wanted in MEANT[purpose]:
        meant = [name for name in names if split_of(name) == wanted]
        exact = [name for name in meant if name.lower() in SPLIT_WORDS[wanted]]
        if len(exact or meant) == 1:
            return exact or meant
        if meant:
            raise UserError(
                f"{source} has several splits for data.{purpose}: {shortened(meant)}; name one as"
                f" {source}[{meant[0]}]"
            )
    if purpose == "predict":
        return list(names)
    raise none_meant(source, names, purpose)


def none_meant(source: str, names: Sequence[str], purpose: str) -> UserError:
    """Return the error for a source none of whose splits is for ``purpose``."""
    without = ", or leave data.val out to hold out a part of data.train" * (purpose == "val")
    return UserError(
        f"{source} has no split for data.{purpose}, only {shortened(names)}; name the one to use as"
        f" {source}[{names[0]}]{without}"
    )
