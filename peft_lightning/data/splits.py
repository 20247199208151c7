"""The rows that one stage uses: several sources as one, or a part held out of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from peft_lightning.data.batching import Rows, Share
from peft_lightning.data.cache import TokenizedDataset
from peft_lightning.data.sources import Source, find_source


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
    shares: list[Share]
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
        Share(np.arange(end - len(part), end), weight)
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


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Part ``split`` into what is trained on and what is held out.

    The held-out rows are the same whatever the training's seed: runs that differ in it stay
    comparable, and a run that goes on with another has not seen them.

    Returns:
        The rest, and ``fraction`` of the rows, at least one.

    Raises:
        ValueError: If nothing would be left to train on.
    """
    total = len(split.rows)
    number = max(1, round(fraction * total))
    if number >= total:
        raise ValueError(
            f"{', '.join(split.names)}: {total} row(s) cannot be parted into training and"
            f" validation (val_fraction: {fraction}); give val, or set val_fraction to 0"
        )
    held_out = np.sort(np.random.default_rng(0).choice(split.rows, number, replace=False))
    rest = [replace(share, rows=np.setdiff1d(share.rows, held_out)) for share in split.shares]
    return replace(split, shares=rest), replace(split, shares=[Share(held_out)])


def listed(paths: str | list[str]) -> list[str]:
    """Return ``paths`` as a list."""
    return [paths] if isinstance(paths, str) else paths
