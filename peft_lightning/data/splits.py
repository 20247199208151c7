"""The rows that a stage needs: to train on, held out of those or given for validation, to test."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from peft_lightning.data.batching import RowIndices, WeightedSource
from peft_lightning.data.mixing import Mixture, epoch_table
from peft_lightning.data.split import Split, Tokenize, find_sources, open_split
from peft_lightning.messages import UserError

DEFAULT_VAL_FRACTION = 0.05
MAX_DEFAULT_VAL_ROWS = 1000  # the standard error of the loss is then a few hundredths of a nat
MIN_ROWS_FOR_DEFAULT_VAL = 20  # 5 % of 20 is one row

SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ()}
_PURPOSE = {"train": "train on", "val": "validate on", "test": "test on"}


def check_val_fraction(val_fraction: float | None) -> None:
    """Check the range of ``val_fraction``.

    Raises:
        UserError: If it is not a fraction.
    """
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise UserError(f"val_fraction must be in [0, 1), got {val_fraction}")


def open_splits(
    stage: str,
    paths: Mapping[str, Any],
    val_fraction: float | None,
    tokenize: Tokenize,
    log: Callable[[str], None],
    opened: Mapping[str, Split],
    mixture: Mixture = Mixture(),  # noqa: B008  (frozen)
    encoding: str | None = None,
) -> dict[str, Split]:
    """Return the splits that ``stage`` needs; without ``val``, a part of ``train`` is held out.

    Args:
        stage: fit, validate, test or predict.
        paths: The path or paths of ``train``, ``val`` and ``test``, or None.
        val_fraction: As for ``hold_out``.
        tokenize: Loads or makes the tokens of a source.
        log: Receives what a user should know of the rows: how many are held out, which sources are
            given twice, and what an epoch takes from each of several.
        opened: The splits that are open already; they are returned too.
        mixture: How many rows an epoch takes from each source of ``train``.
        encoding: Encoding of text files; None for UTF-8.

    Raises:
        UserError: If the rows of a split are not given.
    """
    splits = dict(opened)
    needed = [name for name in SPLITS_OF_STAGE[stage] if name not in splits]
    if "val" in needed and paths["val"] is None and "train" not in needed:
        needed.append("train")
    given = {  # a missing file is found before any is tokenized
        name: find_sources(paths[name], f"data.{name}", encoding)
        for name in needed
        if paths[name] is not None
    }
    for name in SPLITS_OF_STAGE[stage]:
        if name in splits:
            continue
        if name in given:
            splits[name] = open_split(given[name], tokenize, log)
        elif name != "val" or paths["train"] is None:
            raise UserError(f"no data to {_PURPOSE[name]}: give data.{name} a file")
        if name == "test" or paths["val"] is not None:
            continue
        whole = splits.get("train") or open_split(given["train"], tokenize, log)
        splits["train"], val, message = hold_out(whole, val_fraction)
        if val is not None:
            splits["val"] = val
        elif stage == "validate":
            raise UserError(f"no data to {_PURPOSE[name]}: {message}")
        if name == SPLITS_OF_STAGE[stage][0] and val_fraction != 0:
            log(message)
    if "train" in splits:
        splits["train"] = mixed(splits["train"], mixture)
    if stage == "fit":
        _log_epoch(splits, paths, log)
    return splits


def mixed(split: Split, mixture: Mixture) -> Split:
    """Return the rows to train on, at most so many, with the weights that ``mixture`` gives them.

    Raises:
        UserError: If all rows of a source are held out.
    """
    for name, source in zip(split.names, split.sources, strict=True):
        if not len(source.rows):
            raise UserError(
                f"{name}: all of its rows are held out for validation, so none is left to train on;"
                " give data.val, or lower data.val_fraction"
            )
    sources = [mixture.limited(source) for source in split.sources]
    weights = mixture.weights([source.num_records for source in sources])
    pairs = zip(sources, weights, strict=True)
    return replace(
        split,
        sources=[replace(source, weight=weight) for source, weight in pairs],
        fingerprint=[f | mixture.fingerprint(i) for i, f in enumerate(split.fingerprint)],
    )


def _log_epoch(
    splits: Mapping[str, Split], paths: Mapping[str, Any], log: Callable[[str], None]
) -> None:
    """Say what an epoch takes from each source, and which rows are validated and trained on."""
    train = splits["train"]
    if len(train.sources) > 1 or train.sources[0].weight != 1:
        log(epoch_table(train.names, train.sources, train.num_loss_tokens))
    if paths["val"] is not None and (both := train.folders & splits["val"].folders):
        parts: list[Any] = splits["val"].dataset.datasets
        names = ", ".join(part.meta["source"] for part in parts if part.folder in both)
        log(f"data.val: {names} is trained on too, so val/loss is not that of unseen rows")


def hold_out(split: Split, fraction: float | None) -> tuple[Split, Split | None, str]:
    """Split ``split`` into rows to train on and rows held out for validation.

    A row of a file is one of them with all sequences of tokens that it became.

    The held-out rows do not depend on the seed of the run: runs with different seeds stay
    comparable, and a run resumed with another seed has not been trained on them. Nor do they depend
    on the numbers of ``data.train``: the same fraction is held out of each source, so ``val/loss``
    has the sources in the proportions of their files, whatever an epoch takes from them.

    Args:
        split: The rows.
        fraction: Fraction to hold out, at least one row. None for ``DEFAULT_VAL_FRACTION``, at most
            ``MAX_DEFAULT_VAL_ROWS``, and none of fewer than ``MIN_ROWS_FOR_DEFAULT_VAL`` rows.

    Returns:
        The rows to train on, the held-out rows or None, and a message for the user.

    Raises:
        UserError: If no row would be left to train on.
    """
    total, files = split.sizes["rows"], ", ".join(split.names)
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
    held_out = _choose(split, number)
    rest = [replace(s, rows=np.setdiff1d(s.rows, held_out)) for s in split.sources]
    message = (
        f"no data.val: {number:,} of {total:,} rows of {files} are held out for validation"
        f" ({rule}); data.val_fraction changes that"
    )
    return replace(split, sources=rest), _part(split, held_out), message


def _choose(split: Split, number: int) -> RowIndices:
    """Return the rows of ``number`` records, from each source in proportion to its records."""
    distinct = {source.rows[0]: source.rows for source in split.sources}.values()
    groups = [np.unique(split.records[rows]) for rows in distinct]
    sizes = np.array([len(records) for records in groups])
    wanted = sizes * number / sizes.sum()
    counts = np.floor(wanted).astype(int)
    most_missing = np.argsort(counts - wanted, kind="stable")
    counts[most_missing[: number - counts.sum()]] += 1
    draw = np.random.default_rng(0)
    chosen = [draw.choice(r, n, replace=False) for r, n in zip(groups, counts, strict=True)]
    return np.flatnonzero(np.isin(split.records, np.concatenate(chosen)))


def _part(split: Split, rows: RowIndices) -> Split:
    """Return the split of ``rows`` alone, those of a source that is given twice once."""
    found: dict[int, int] = {}  # by the first row, the position of the source
    for i, source in enumerate(split.sources):
        if len(np.intersect1d(source.rows, rows)):
            found.setdefault(int(source.rows[0]), i)
    kept = list(found.values())
    sources = [WeightedSource(np.intersect1d(split.sources[i].rows, rows)) for i in kept]
    labels = [split.labels[i] for i in kept] if len(kept) > 1 else []
    return replace(split, sources=sources, labels=labels)
