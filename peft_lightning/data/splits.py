"""The rows that one stage uses: several sources as one, or a part held out of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from peft_lightning.data.batching import Rows, WeightedSource
from peft_lightning.data.cache import TokenizedDataset
from peft_lightning.data.sources import Source, find_source

AUTOMATIC = 0.05  # share of the rows that are held out where nobody says how many
MOST = 1000  # of them: the standard error of the loss is then a few hundredths of a nat
FEWEST = 20  # rows from which on some are: 5 % of 20 is one


@dataclass(frozen=True)
class Split:
    """Rows of one or several sources.

    Args:
        dataset: All rows of the sources, one behind the other.
        lengths: (all rows,) their numbers of tokens.
        labelled: (all rows,) their numbers of tokens in the loss.
        shares: The rows that belong to this split, by source.
        facts: What decided the tokens, by source.
        names: The sources as the user wrote them.
    """

    dataset: ConcatDataset[dict[str, NDArray[np.int64]]]
    lengths: NDArray[np.int64]
    labelled: NDArray[np.int64]
    shares: list[WeightedSource]
    facts: list[dict[str, Any]]
    names: list[str]

    @property
    def rows(self) -> Rows:
        """The indices of this split's rows."""
        return np.concatenate([share.rows for share in self.shares])

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of rows, tokens and tokens in the loss."""
        return {
            "rows": len(self.rows),
            "tokens": int(self.lengths[self.rows].sum()),
            "labelled_tokens": int(self.labelled[self.rows].sum()),
        }


def open_split(
    paths: str | list[str] | Mapping[str, float], tokenize: Callable[[Source], TokenizedDataset]
) -> Split:
    """Find the sources, tokenise them or open what was, and lay them one behind the other.

    Args:
        paths: One path, several, or several with weights.
        tokenize: Makes or opens a source's tokens.
    """
    weights = paths if isinstance(paths, Mapping) else dict.fromkeys(listed(paths), 1.0)
    if not weights:
        raise ValueError("an empty list of data files")
    sources = [find_source(path) for path in weights]  # all are there, before the work starts
    parts = [tokenize(source) for source in sources]
    ends = np.cumsum([len(part) for part in parts])
    shares = [
        WeightedSource(np.arange(end - len(part), end), weight)
        for part, end, weight in zip(parts, ends, weights.values(), strict=True)
    ]
    return Split(
        ConcatDataset(parts),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.labelled_lengths for part in parts]),
        shares,
        [{**p.meta["facts"], "weight": w} for p, w in zip(parts, weights.values(), strict=True)],
        list(weights),
    )


def hold_out(split: Split, fraction: float | None) -> tuple[Split, Split | None, str]:
    """Part ``split`` into what is trained on and what is held out for validation.

    The held-out rows are the same whatever the training's seed: runs that differ in it stay
    comparable, and a run that goes on with another has not seen them.

    Args:
        split: The rows.
        fraction: Share of them to hold out, at least one row. None for ``AUTOMATIC``, but at most
            ``MOST`` rows, and none of fewer than ``FEWEST``: all are needed for training.

    Returns:
        The rest, the rows held out if there are any, and what the user is told of that.

    Raises:
        ValueError: If nothing would be left to train on.
    """
    total, files = len(split.rows), ", ".join(split.names)
    if fraction is None:
        number = 0 if total < FEWEST else min(MOST, round(AUTOMATIC * total))
        by = f"{AUTOMATIC:.0%}, at most {MOST:,}"
    else:
        number = max(1, round(fraction * total)) if fraction else 0
        by = f"data.val_fraction {fraction:g}"
    if not number:
        why = "data.val_fraction is 0" if fraction == 0 else f"fewer than {FEWEST}"
        return (
            split,
            None,
            f"no data.val: none of {total:,} rows of {files} are held out ({why}), so there is no"
            " val/loss and no best.ckpt; give data.val, or data.val_fraction 0.1",
        )
    if number >= total:
        raise ValueError(
            f"{files}: {total} row(s) cannot be parted into training and validation"
            f" ({by}); give data.val, or set data.val_fraction to 0"
        )
    held_out = np.sort(np.random.default_rng(0).choice(split.rows, number, replace=False))
    rest = [replace(share, rows=np.setdiff1d(share.rows, held_out)) for share in split.shares]
    said = (
        f"no data.val: {number:,} of {total:,} rows of {files} are held out for validation ({by});"
        " data.val_fraction changes that"
    )
    return replace(split, shares=rest), replace(split, shares=[WeightedSource(held_out)]), said


def listed(paths: str | list[str]) -> list[str]:
    """Return ``paths`` as a list."""
    return [paths] if isinstance(paths, str) else paths
