"""The file of a trainer's state: what is written can be read back, and reading runs no code.

Beside tensors and plain values it may hold paths, numbers and arrays of numpy, the containers of
``collections``, dates, Enums and plain dataclasses. Other types are named when they are written.
"""

from __future__ import annotations

import _codecs
import collections
import datetime
import decimal
import fractions
import io
import pathlib
import pickle
import sys
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from peft_lightning.adapters import Adapter
from peft_lightning.hyperparameters import plain, without_secrets
from peft_lightning.messages import UserError, shortened
from peft_lightning.training.schedules import Schedule

OF_MODULE = "hyper_parameters"  # Lightning's keys of them
HYPERPARAMETERS = (OF_MODULE, "datamodule_hyper_parameters")
TRUST = "weights_only=False of trainer.fit, --weights_only false on the command line"

_HARMLESS = [  # building one runs no code that a file could choose
    *(bool, int, float, complex, str, bytes, bytearray, list, dict, set, frozenset, tuple),
    *(range, slice, collections.deque, collections.defaultdict),
    *(pathlib.PurePosixPath, pathlib.PosixPath, pathlib.PureWindowsPath, pathlib.WindowsPath),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta, datetime.timezone),
    *(decimal.Decimal, fractions.Fraction, uuid.UUID, uuid.SafeUUID),
    *(np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]),
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    _codecs.encode,  # of the bytes in a pickle
]


class _Pickler(pickle.Pickler):
    """Writes the containers that torch's safe reader cannot fill as calls with their content."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is collections.deque:
            return collections.deque, (list(value), value.maxlen)
        if type(value) is collections.defaultdict:
            return collections.defaultdict, (value.default_factory, dict(value))
        return NotImplemented


_pickle = ModuleType("pickle")  # what torch.save takes the class of the pickler from
_pickle.Pickler = _Pickler  # type: ignore[attr-defined]


def write_state(state: Mapping[str, Any], file: Path, told: set[str]) -> None:
    """Write a trainer's state; hyperparameters become plain values without secrets.

    What is in it and cannot be read back without the user's trust is named in a warning.

    Args:
        state: What Lightning saves, but for the module's tensors.
        file: The path to write to.
        told: The places of such values that were named before; is extended.

    Raises:
        UserError: If something in it cannot be pickled; names it.
    """
    own = {k: without_secrets(plain(v)) for k, v in state.items() if k in HYPERPARAMETERS}
    try:
        _save({**state, **own}, file)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if (reason := _unpicklable(state)) is None:
            raise
        raise UserError(reason) from error
    if _is_read_back(_without_tensors(dict(state))):
        return
    found = {place: value for place, value in _leaves(dict(state)) if not _is_read_back(value)}
    for place in found.keys() - told:
        told.add(place)
        rank_zero_warn(
            f"checkpoint{place} is a {_type_name(found[place])}, which is not read back by "
            f"default: save plain values there, or resume with {TRUST}"
        )


def read_state(file: Path, weights_only: bool | None = None) -> dict[str, Any]:
    """Read a trainer's state, tensors to the CPU.

    Args:
        file: The path that it was written to.
        weights_only: False for a file that is trusted: everything in it is unpickled, which can run
            code. Otherwise only what runs none.

    Raises:
        UserError: If it is damaged, or holds what is not read by default; names that.
    """
    _require_stored(file)
    try:
        if weights_only is False:
            state = torch.load(file, map_location="cpu", weights_only=False)
        else:
            state = _load(file)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        if weights_only is not False and (found := _unknown(file)):
            raise UserError(
                f"{file} cannot be read by default: it holds {shortened(found)}, which could run "
                f"code. If you trust the file, give {TRUST}"
            ) from None
        raise UserError(f"{file} cannot be read, it may be damaged: {_first_line(error)}") from None
    except (AttributeError, ImportError, TypeError) as error:  # classes are not what they were
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise UserError(f"{file} is no trainer's state: it holds a {type(state).__name__}")
    return state


def _require_stored(file: Path) -> None:
    """Check that nothing in a file is compressed: torch does not, and MBs could become GBs.

    Raises:
        UserError: If something is.
    """
    kinds: set[int] = set()
    with suppress(OSError, ValueError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        kinds = {member.compress_type for member in archive.infolist()}
    if kinds - {zipfile.ZIP_STORED}:
        raise UserError(f"{file} is not read: it is compressed, which torch.save never does")


def _save(value: Any, file: Path | io.BytesIO) -> None:
    torch.save(value, file, pickle_module=_pickle)


def _load(file: Path | io.BytesIO) -> Any:
    """Read what runs no code."""
    for_names, for_values = file, file
    if isinstance(file, io.BytesIO):
        for_names, for_values = (io.BytesIO(file.getbuffer()) for _ in range(2))
    with safe_globals([*_HARMLESS, *_known(for_names)]):
        return torch.load(for_values, map_location="cpu", weights_only=True)


def _is_read_back(value: Any) -> bool:
    """Whether a value is read without the user's trust."""
    _save(value, file := io.BytesIO())
    try:
        _load(file)
    except (RuntimeError, pickle.UnpicklingError, AttributeError, ImportError, TypeError):
        return False
    return True


def _without_tensors(value: Any) -> Any:
    """Return what is in nested dicts, lists and tuples without the tensors, which are all read."""
    if type(value) is dict:
        return {name: _without_tensors(inner) for name, inner in value.items()}
    if type(value) in (list, tuple):
        return [_without_tensors(inner) for inner in value]
    return None if type(value) in (torch.Tensor, torch.nn.Parameter) else value


def _known(file: Path | io.BytesIO) -> list[type]:
    """Return the classes named in ``file`` that are imported and whose objects only hold values."""
    with safe_globals(_HARMLESS):
        names = get_unsafe_globals_in_checkpoint(file)
    return [found for name in names if _only_holds_values(found := _imported(name))]


def _unknown(file: Path) -> list[str]:
    """Return the classes and functions in ``file`` that are not read; none if it is damaged."""
    try:
        with safe_globals([*_HARMLESS, *_known(file)]):
            return sorted(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # what reads a damaged pickle raises anything
        return []


def _imported(name: str) -> Any:
    """Return the class or function of a dotted path if its module is imported already."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _only_holds_values(kind: Any) -> bool:
    """Whether making and filling an object of a class runs no code but the class's validation."""
    if not isinstance(kind, type):
        return False
    if issubclass(kind, Enum | Adapter | Schedule) or _is_namedtuple(kind):
        return True
    own = ("__post_init__", "__setstate__", "__reduce__", "__reduce_ex__")
    changed = any(getattr(kind, name, None) is not getattr(object, name, None) for name in own)
    return is_dataclass(kind) and kind.__new__ is object.__new__ and not changed


def _is_namedtuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and hasattr(kind, "_fields")


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is in nested dicts, lists and tuples, with its place; no tensors."""
    if type(value) is dict:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{i}]")
    elif not isinstance(value, torch.Tensor):
        yield place, value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _unpicklable(state: Mapping[str, Any]) -> str | None:
    """Return what in ``state`` cannot be saved, and why."""
    for place, value in _leaves(dict(state)):
        try:
            _save(value, io.BytesIO())
        except Exception as error:
            return f"checkpoint{place} is a {_type_name(value)}, which cannot be saved: {error}"
    return None
