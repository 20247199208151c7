"""The rows of training, validation and testing: several sources as one, or a held-out part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from peft_lightning.data.batching import RowIndices, WeightedSource
from peft_lightning.data.sources import Source, as_list, find_source
from peft_lightning.data.tokenized_dataset import TokenizedDataset
from peft_lightning.messages import UserError

DEFAULT_VAL_FRACTION = 0.05
MAX_DEFAULT_VAL_ROWS = 1000  # the standard error of the loss is then a few hundredths of a nat
MIN_ROWS_FOR_DEFAULT_VAL = 20  # 5 % of 20 is one row

SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}
_PURPOSE = {"train": "train on", "val": "validate on", "test": "test on"}

Tokenize = Callable[[Source], TokenizedDataset]


@dataclass(frozen=True)
class Split:
    """The rows of one or several sources that are used for one purpose.

    Args:
        dataset: All rows of the sources, concatenated.
        lengths: (all rows,) Number of tokens of each row.
        num_loss_tokens: (all rows,) Number of tokens in the loss of each row.
        sources: The rows that belong to this split, by source.
        fingerprint: What determines the tokens, by source.
        names: The sources as the user wrote them.
    """

    dataset: ConcatDataset[dict[str, NDArray[np.int64]]]
    lengths: NDArray[np.int64]
    num_loss_tokens: NDArray[np.int64]
    sources: list[WeightedSource]
    fingerprint: list[dict[str, Any]]
    names: list[str]

    @property
    def rows(self) -> RowIndices:
        """The indices of the rows of this split."""
        return np.concatenate([source.rows for source in self.sources])

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of rows, tokens and tokens in the loss."""
        return {
            "rows": len(self.rows),
            "tokens": int(self.lengths[self.rows].sum()),
            "loss_tokens": int(self.num_loss_tokens[self.rows].sum()),
        }


def check_paths(paths: Mapping[str, Any], val_fraction: float | None) -> None:
    """Check what can be checked of the sources and their weights before a file is read.

    Raises:
        UserError: If a weight or ``val_fraction`` is out of its range.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be in [0, 1), got {val_fraction}")
    train = paths["train"]
    weights = train.values() if isinstance(train, dict) else []
    if any(weight <= 0 for weight in weights):
        raise UserError(f"a source's weight must be above 0, got {train}")


def open_splits(
    stage: str,
    paths: Mapping[str, Any],
    val_fraction: float | None,
    tokenize: Tokenize,
    log: Callable[[str], None],
    opened: Mapping[str, Split],
) -> dict[str, Split]:
    """Return the splits that ``stage`` needs; without ``val``, a part of ``train`` is held out.

    Args:
        stage: fit, validate, test or predict.
        paths: The path or paths of ``train``, ``val`` and ``test``, or None.
        val_fraction: As for ``hold_out``.
        tokenize: Loads or makes the tokens of a source.
        log: Receives how many rows are held out.
        opened: The splits that are open already; they are returned too.

    Raises:
        UserError: If the rows of a split are not given.
    """
    splits = dict(opened)
    for name in SPLITS_OF_STAGE[stage]:
        if name in splits:
            continue
        if paths[name] is not None:
            splits[name] = open_split(paths[name], tokenize)
        elif name != "val" or paths["train"] is None:
            raise UserError(f"no data to {_PURPOSE[name]}: give data.{name} a file")
        if name == "test" or paths["val"] is not None:
            continue
        whole = splits.get("train") or open_split(paths["train"], tokenize)
        splits["train"], val, message = hold_out(whole, val_fraction)
        if val is not None:
            splits["val"] = val
        elif stage == "validate":
            raise UserError(f"no data to {_PURPOSE[name]}: {message}")
        if name == SPLITS_OF_STAGE[stage][0] and val_fraction != 0:
            log(message)
    return splits


def open_split(paths: str | list[str] | Mapping[str, float], tokenize: Tokenize) -> Split:
    """Tokenize sources, or load their tokens, and concatenate them.

    Args:
        paths: One path, several, or several with weights.
        tokenize: Loads or makes the tokens of a source.
    """
    weights = paths if isinstance(paths, Mapping) else dict.fromkeys(as_list(paths), 1.0)
    if not weights:
        raise UserError("an empty list of data files")
    sources = [find_source(path) for path in weights]  # a missing one is found before tokenizing
    parts = [tokenize(source) for source in sources]
    ends = np.cumsum([len(part) for part in parts])
    rows = [
        WeightedSource(np.arange(end - len(part), end), weight)
        for part, end, weight in zip(parts, ends, weights.values(), strict=True)
    ]
    pairs = list(zip(parts, weights.values(), strict=True))
    return Split(
        ConcatDataset(parts),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.num_loss_tokens for part in parts]),
        rows,
        [{**part.meta["fingerprint"], "weight": weight} for part, weight in pairs],
        list(weights),
    )


def hold_out(split: Split, fraction: float | None) -> tuple[Split, Split | None, str]:
    """Split ``split`` into rows to train on and rows held out for validation.

    The held-out rows do not depend on the seed of the run: runs with different seeds stay
    comparable, and a run resumed with another seed has not been trained on them.

    Args:
        split: The rows.
        fraction: Fraction to hold out, at least one row. None for ``DEFAULT_VAL_FRACTION``, at most
            ``MAX_DEFAULT_VAL_ROWS``, and none of fewer than ``MIN_ROWS_FOR_DEFAULT_VAL`` rows.

    Returns:
        The rows to train on, the held-out rows or None, and a message for the user.

    Raises:
        UserError: If no row would be left to train on.
    """
    total, files = len(split.rows), ", ".join(split.names)
    if fraction is None:
        number = min(MAX_DEFAULT_VAL_ROWS, round(DEFAULT_VAL_FRACTION * total))
        number = 0 if total < MIN_ROWS_FOR_DEFAULT_VAL else number
        rule = f"{DEFAULT_VAL_FRACTION:.0%}, at most {MAX_DEFAULT_VAL_ROWS:,}"
    else:
        number = max(1, round(fraction * total)) if fraction else 0
        rule = f"data.val_fraction {fraction:g}"
    if not number:
        few = f"fewer than {MIN_ROWS_FOR_DEFAULT_VAL}"
        why = "data.val_fraction is 0" if fraction == 0 else few
        return (
            split,
            None,
            f"no data.val: none of {total:,} rows of {files} are held out ({why}), so there is no"
            " val/loss and no best.ckpt; give data.val, or data.val_fraction 0.1",
        )
    if number >= total:
        raise UserError(
            f"{files}: {total} row(s) cannot be split into training and validation"
            f" ({rule}); give data.val, or set data.val_fraction to 0"
        )
    held_out = np.sort(np.random.default_rng(0).choice(split.rows, number, replace=False))
    rest = [replace(s, rows=np.setdiff1d(s.rows, held_out)) for s in split.sources]
    message = (
        f"no data.val: {number:,} of {total:,} rows of {files} are held out for validation"
        f" ({rule}); data.val_fraction changes that"
    )
    val = replace(split, sources=[WeightedSource(held_out)])
    return replace(split, sources=rest), val, message
