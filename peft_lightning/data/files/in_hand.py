"""What an option of the data takes from Python: paths, rows and data sets, or several of them."""

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from peft_lightning.data.files.rows_in_hand import RowsInHand, is_of_datasets
from peft_lightning.data.files.sources import Source
from peft_lightning.data.files.split_names import choose_split
from peft_lightning.messages import UserError

if TYPE_CHECKING:
    Rows = Any
    TrainRows = Any
    NamedRows = Any
else:  # what a config can hold
    Rows = str | list[str]
    TrainRows = str | list[str] | dict[str, float]
    NamedRows = str | list[str] | dict[str, str]

FORMS = (
    "a path, a list of dicts, a Dataset or IterableDataset of `datasets` or torch, or a list of "
    "such"
)


def in_hand(value: Any, option: str, max_rows: int | None = None) -> Any:
    """Return the value of an option with paths as text and rows as sources.

    Args:
        value: One of ``FORMS``; for ``data.train`` also a mapping of them to numbers, for the
            others one of names to them.
        option: The option, such as ``data.train``.
        max_rows: As for ``RowsInHand``.

    Raises:
        UserError: If it is something else.
    """
    if isinstance(value, str | Source | None):
        return value
    value = _split_meant(value, option)
    if not isinstance(value, list | tuple | Mapping):
        return _one(value, option, max_rows)
    if isinstance(value, Mapping):
        if option == "data.train" and any(isinstance(v, list | tuple) for v in value.values()):
            raise UserError(
                f"{option} maps columns to values: make rows of them, datasets.Dataset.from_dict("
                "...), or give the rows as a list of dicts"
            )
        if option == "data.train":
            names = [_one(key, f"{option}[{i}]", max_rows) for i, key in enumerate(value)]
            return dict(zip(names, value.values(), strict=True))
        return {
            str(name): _one(inner, f"{option}[{name}]", max_rows) for name, inner in value.items()
        }
    if _are_rows(value, option):
        return _one(value, option, max_rows)
    return [_one(item, f"{option}[{i}]", max_rows) for i, item in enumerate(value)]


def _one(value: Any, name: str, max_rows: int | None) -> str | Source:
    value = _split_meant(value, name)
    if isinstance(value, str | Source):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("pandas", "polars") and hasattr(value, "columns"):
        raise UserError(
            f"{name} is a {kind.__name__} of {kind.__module__.partition('.')[0]}: give "
            f"datasets.Dataset.from_{kind.__module__.partition('.')[0]}(...) of it"
        )
    is_indexed = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    is_rows = isinstance(value, Iterable) or is_indexed
    is_list = isinstance(value, list | tuple)
    is_rows = is_rows and not isinstance(value, Mapping | bytes)
    if not is_rows or (is_list and not _are_rows(value, name)):
        raise UserError(f"{name} must be {FORMS}, got {value!r:.80}")
    return RowsInHand(name, rows=value, max_rows=max_rows)


def _are_rows(values: Any, option: str) -> bool:
    """Whether a list is of rows, not of sources."""
    if not any(isinstance(value, Mapping) and not _is_split_dict(value) for value in values):
        return False
    if any(isinstance(value, str | os.PathLike) for value in values):
        raise UserError(
            f"{option} has rows and paths in one list: make the rows a list of their own, [rows, "
            "'more.jsonl']"
        )
    return True


def _split_meant(value: Any, option: str) -> Any:
    """Return the split of a ``DatasetDict`` that an option means; another value as it is."""
    if not _is_split_dict(value):
        return value
    purpose = option.removeprefix("data.").partition("[")[0]
    names = choose_split(list(value), purpose, type(value).__name__)
    return value[names[0]] if len(names) == 1 else [value[name] for name in names]


def _is_split_dict(value: Any) -> bool:
    return is_of_datasets(value, "DatasetDict", "IterableDatasetDict")
