"""The rows of training, validation and testing: several sources as one, or a held-out part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset

from peft_lightning.data.batching import RowIndices, WeightedSource
from peft_lightning.data.mixing import Mixture, epoch_table
from peft_lightning.data.per_source import source_names
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
        dataset: All rows of the sources, concatenated; those of a source that is given twice once.
        lengths: (all rows,) Number of tokens of each row.
        num_loss_tokens: (all rows,) Number of tokens in the loss of each row.
        sources: The rows that belong to this split, by source.
        fingerprint: What determines the tokens, by source.
        names: The sources as the user wrote them.
        labels: The names of the sources in metrics; empty for one path without a name.
    """

    dataset: ConcatDataset[dict[str, NDArray[np.int64]]]
    lengths: NDArray[np.int64]
    num_loss_tokens: NDArray[np.int64]
    sources: list[WeightedSource]
    fingerprint: list[dict[str, Any]]
    names: list[str]
    labels: list[str]

    @property
    def rows(self) -> RowIndices:
        """The indices of the rows of this split, each once, in increasing order."""
        return np.unique(np.concatenate([source.rows for source in self.sources]))

    @property
    def folders(self) -> set[Path]:
        """The folders of the tokens of its sources; sources of equal content share one."""
        parts: list[Any] = self.dataset.datasets
        return {part.folder for part in parts}

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of rows, tokens and tokens in the loss."""
        return {
            "rows": len(self.rows),
            "tokens": int(self.lengths[self.rows].sum()),
            "loss_tokens": int(self.num_loss_tokens[self.rows].sum()),
        }


def open_splits(
    stage: str,
    paths: Mapping[str, Any],
    val_fraction: float | None,
    tokenize: Tokenize,
    log: Callable[[str], None],
    opened: Mapping[str, Split],
    mixture: Mixture = Mixture(),  # noqa: B008  (frozen)
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

    Raises:
        UserError: If the rows of a split are not given.
    """
    splits = dict(opened)
    given = {  # a missing file is found before any is tokenized
        name: find_sources(paths[name], f"data.{name}")
        for name in ("train", "val", "test")
        if paths[name] is not None and stage != "predict"
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


@dataclass(frozen=True)
class GivenSources:
    """The sources of an option.

    Args:
        option: The option, such as ``data.train``.
        names: The sources as the user wrote them; one that is given twice occurs twice.
        labels: Their names in metrics; empty for one path without a name.
        sources: Each of them once, by name.
    """

    option: str
    names: list[str]
    labels: list[str]
    sources: dict[str, Source]


def find_sources(paths: Any, option: str) -> GivenSources:
    """Return the sources of an option.

    Args:
        paths: One path, several, a mapping of paths to numbers for ``data.train``, or of names to
            paths for the others.
        option: The option that gives the paths.

    Raises:
        UserError: If a source does not exist, there is none, or ``paths`` is something else.
    """
    maps = "paths to numbers, {a.jsonl: 0.7, b.jsonl: 0.3}"
    if option != "data.train":
        maps = "names to paths, {chat: chat.jsonl}"
    if not paths:
        raise UserError(f"{option}: an empty list of data files")
    if isinstance(paths, str) and paths.startswith("{"):  # of the command line, not as typed
        raise UserError(f"{option} maps {maps}, got {paths}")
    names = list(as_list(paths) if isinstance(paths, str) else paths)
    labels = source_names(names) if len(names) > 1 else []
    if isinstance(paths, Mapping) and option != "data.train":
        names, labels = list(paths.values()), [str(name) for name in names]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{option} maps {maps}, or is a path or a list of paths, got {paths}")
    return GivenSources(option, names, labels, {name: find_source(name) for name in names})


def open_split(given: GivenSources, tokenize: Tokenize, log: Callable[[str], None]) -> Split:
    """Tokenize sources, or load their tokens, and concatenate them.

    Args:
        given: The sources.
        tokenize: Loads or makes the tokens of a source.
        log: Receives which sources are given several times.
    """
    parts = {name: tokenize(source) for name, source in given.sources.items()}
    distinct = {part.folder: part for part in parts.values()}
    ends = np.cumsum([len(part) for part in distinct.values()])
    rows = {
        folder: np.arange(end - len(part), end)
        for (folder, part), end in zip(distinct.items(), ends, strict=True)
    }
    for folder in distinct:
        same = [name for name in given.names if parts[name].folder == folder]
        if len(same) > 1:
            alike = f"{same[0]} is" if len(set(same)) == 1 else f"{', '.join(same)} are one source"
            log(f"{given.option}: {alike} given {len(same)} times, and read as often")
    return Split(
        ConcatDataset(distinct.values()),
        np.concatenate([part.lengths for part in distinct.values()]),
        np.concatenate([part.num_loss_tokens for part in distinct.values()]),
        [WeightedSource(rows[parts[name].folder]) for name in given.names],
        [parts[name].meta["fingerprint"] for name in given.names],
        given.names,
        given.labels,
    )


def mixed(split: Split, mixture: Mixture) -> Split:
    """Return the rows to train on with the weights that ``mixture`` gives their sources.

    Raises:
        UserError: If all rows of a source are held out.
    """
    for name, source in zip(split.names, split.sources, strict=True):
        if not len(source.rows):
            raise UserError(
                f"{name}: all of its rows are held out for validation, so none is left to train on;"
                " give data.val, or lower data.val_fraction"
            )
    weights = mixture.weights([len(source.rows) for source in split.sources])
    pairs = zip(split.sources, weights, strict=True)
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
    held_out = _choose(split, number)
    rest = [replace(s, rows=np.setdiff1d(s.rows, held_out)) for s in split.sources]
    message = (
        f"no data.val: {number:,} of {total:,} rows of {files} are held out for validation"
        f" ({rule}); data.val_fraction changes that"
    )
    return replace(split, sources=rest), _part(split, held_out), message


def _choose(split: Split, number: int) -> RowIndices:
    """Return ``number`` rows, from each source in proportion to its rows, in increasing order."""
    groups = list({source.rows[0]: source.rows for source in split.sources}.values())
    sizes = np.array([len(rows) for rows in groups])
    wanted = sizes * number / sizes.sum()
    counts = np.floor(wanted).astype(int)
    most_missing = np.argsort(counts - wanted, kind="stable")
    counts[most_missing[: number - counts.sum()]] += 1
    draw = np.random.default_rng(0)
    chosen = [draw.choice(r, n, replace=False) for r, n in zip(groups, counts, strict=True)]
    return np.sort(np.concatenate(chosen))


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
