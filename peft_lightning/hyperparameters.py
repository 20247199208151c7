"""Hyperparameters as plain values: what ``hparams``, loggers and checkpoints hold of a constructor.

A class with ``PlainHyperparameters`` calls ``self.save_hyperparameters()`` in its ``__init__``.
Objects become what a YAML file would say: ``{"class_path": ..., "init_args": {...}}``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from enum import Enum
from os import PathLike, fspath
from types import FrameType
from typing import Any, ClassVar

from lightning.pytorch.core.mixins import HyperparametersMixin

from peft_lightning.messages import is_secret

NOT_SAVED = "not_saved"  # key of what stands for a value that is not saved: why it is not
IMPORT_PATH = "import_path"  # key of what stands for a class, a function or a member of an Enum
_OF_THE_CLI = ("_instantiator", "_class_path")  # added by LightningCLI to the options
_MOST = 1000  # values in a list, a dict or an array: what is longer is data


class PlainHyperparameters(HyperparametersMixin):
    """Keeps the arguments of a constructor, of subclasses too, as plain values in ``hparams``.

    Attributes:
        logs_hyperparameters: Whether the loggers get them; ``save_hyperparameters(logger=False)``
            says no.
    """

    logs_hyperparameters = True
    row_arguments: ClassVar[frozenset[str]] = frozenset()  # whose lists of dicts are data

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep arguments of the constructor in ``hparams``, as Lightning's method of this name.

        They are plain values there. Each logger gets them once a run, with the other options of
        the run.
        """
        self.logs_hyperparameters = logger
        caller = frame or inspect.currentframe().f_back  # type: ignore[union-attr]
        super().save_hyperparameters(*args, ignore=ignore, frame=caller, logger=False)

    def _set_hparams(self, hp: Any) -> None:
        given = {k: v for k, v in dict(self._to_hparams_dict(hp)).items() if k not in _OF_THE_CLI}
        rows = self.row_arguments
        super()._set_hparams(
            {k: plain(without_rows(v) if k in rows else v) for k, v in given.items()}
        )


def plain(value: Any) -> Any:
    """Return a value as None, bool, int, float, str, and lists and dicts of them.

    A path becomes its text, an array a list. A dataclass and a ``functools.partial`` of keywords
    become ``{"class_path": ..., "init_args": {...}}``, a class, a function and the member of an
    Enum ``{"import_path": ...}``, a pretrained model its name. Anything else becomes
    ``{"not_saved": "a lock of _thread"}``.
    """
    if isinstance(value, Enum):
        path = dotted_path(type(value))
        return value.name if path is None else {IMPORT_PATH: f"{path}.{value.name}"}
    if value is None or isinstance(value, bool | int | float | str):
        return _exact(value)
    if isinstance(value, PathLike):
        return str(fspath(value))
    if isinstance(value, Mapping | Set | Sequence) and len(value) > _MOST:
        return {NOT_SAVED: f"a {type(value).__name__} of {len(value):,} values"}
    if isinstance(value, Mapping):
        return {_key(k): plain(v) for k, v in value.items()}
    if isinstance(value, Set):
        return [plain(v) for v in sorted(value, key=str)]
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(v) for v in value]
    if is_dataclass(value) and not isinstance(value, type):
        return _described(type(value), {f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, functools.partial) and (made := _made_by(value)) is not None:
        return _described(made, value.keywords)
    if callable(getattr(value, "tolist", None)) and getattr(value, "size", None) is not None:
        numbers = value.numel() if hasattr(value, "numel") else value.size
        return plain(value.tolist()) if numbers <= _MOST else _not_saved(value)
    if isinstance(value, type) or inspect.isroutine(value):
        path = dotted_path(value)
        return _not_saved(value) if path is None else {IMPORT_PATH: path}
    if isinstance(name := getattr(value, "name_or_path", None), str) and name:
        return name  # a model or a tokenizer of transformers
    text = str(value) if type(value).__module__ == "torch" else ""  # torch.float32, cuda:0
    return text if text and "\n" not in text and "(" not in text else _not_saved(value)


def without_rows(value: Any) -> Any:
    """Return a value with ``{"not_saved": "24 rows"}`` in place of each list of dicts in it."""
    if isinstance(value, Mapping):
        return {name: without_rows(inner) for name, inner in value.items()}
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(inner, Mapping) for inner in value) and not any(map(is_not_saved, value)):
        return {NOT_SAVED: f"{len(value):,} rows"}
    return [without_rows(inner) for inner in value]


def dotted_path(value: Any) -> str | None:
    """Return ``module.name`` of a class or function; None if it has no such path."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    return None if module is None or not name or "<" in name else f"{module}.{name}"


def without_secrets(value: Any, name: str = "") -> Any:
    """Return plain ``value`` with ``{"not_saved": "a secret"}`` in place of each secret.

    Args:
        value: Plain.
        name: Of the option that it is the value of.
    """
    if is_secret(name, value):
        return {NOT_SAVED: "a secret"}
    if isinstance(value, dict):
        return {k: without_secrets(v, str(k)) for k, v in value.items()}
    return [without_secrets(v, name) for v in value] if isinstance(value, list) else value


def is_not_saved(value: Any) -> bool:
    """Whether ``value`` stands for one that is not saved."""
    return isinstance(value, dict) and value.keys() == {NOT_SAVED}


def _key(key: Any) -> int | str:
    return key if type(key) is int else str(key.name if isinstance(key, Enum) else key)


def _made_by(partial: functools.partial) -> Any:
    """Return the function that ``partial`` gives its keywords to; None if it gives more."""
    if not partial.args:
        return partial.func
    from_yaml = getattr(partial.func, "__module__", "").startswith("jsonargparse")
    return partial.args[-1] if from_yaml and isinstance(partial.args[-1], type) else None


def _exact(value: Any) -> Any:
    """Return an int, float or str as exactly that: numpy's float64 is a subclass of float."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None


def _described(what: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = dotted_path(what)
    return _not_saved(what) if path is None else {"class_path": path, "init_args": plain(arguments)}


def _not_saved(value: Any) -> dict[str, str]:
    is_named = hasattr(value, "__qualname__") and hasattr(value, "__module__")  # no generator
    kind = value if is_named else type(value)
    name = value.__qualname__ if is_named else f"a {kind.__qualname__}"
    return {NOT_SAVED: f"{name} of {kind.__module__}"}
