"""The class of an adapter's folder: one of ours, or one of the user's that has been imported.

A folder names the class it was trained with, and may come from anywhere: no code is imported
because a folder says so. The class of a user is known once its module has been imported: by name
on the command line (``--adapter_class``), by ``import`` in Python, or by an entry point of an
installed package.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from peft_lightning.adapters.base import Adapter, is_ours
from peft_lightning.messages import UserError, did_you_mean

ENTRY_POINTS = "peft_lightning.adapters"  # the group in which a package names its adapters' classes
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def class_path(kind: type[Adapter]) -> str:
    """Return the dotted path by which another process can import a class."""
    module = kind.__module__
    if module == "__main__" and (file := getattr(sys.modules[module], "__file__", None)):
        module = Path(file).stem
    return f"{module}.{kind.__name__}"


def own_class(adapter: Adapter) -> dict[str, str]:
    """Return the entry of ``peft_lightning.json`` for an adapter of a class that is not ours."""
    kind = type(adapter)
    return {} if is_ours(kind) else {"adapter_class": class_path(kind)}


def adapter_class(peft_type: Any, path: Any = None, where: object = "the folder") -> type[Adapter]:
    """Return the class of an adapter's folder.

    Args:
        peft_type: That of its ``adapter_config.json``.
        path: The class that it was trained with, of its ``peft_lightning.json``; None if it is one
            of ours, or the folder is HF PEFT's.
        where: The folder, for an error.

    Raises:
        UserError: If it is not known; the message says how to name it.
    """
    if path is not None and not (isinstance(path, str) and _PATH.fullmatch(path)):
        raise UserError(f"{where}: adapter_class must be a dotted path, got {path!r:.80}")
    if found := _known(peft_type, path):
        return found
    for point in entry_points(group=ENTRY_POINTS, name=str(peft_type)):
        try:
            point.load()
        except Exception as error:
            raise UserError(
                f"the installed package {getattr(point.dist, 'name', '')} names {point.value} for "
                f"{peft_type}, and importing it fails: {type(error).__name__}: {error}"
            ) from error
    if found := _known(peft_type, path):
        return found
    if path is not None:
        raise UserError(
            f"{where} was trained with {path}, a class that is not imported here: if you trust its "
            f"code, give --adapter_class {path}, or import it first in Python"
        )
    known = Adapter.by_peft_type
    raise UserError(
        f"peft_type {peft_type!r:.80} is not known here; there are {', '.join(sorted(known))}"
        + did_you_mean(str(peft_type), known)
        + "; for another method of HF PEFT load it with HF PEFT, or merge it there and give the "
        "merged model as the base; a class of your own is named by --adapter_class MODULE.CLASS, "
        "or imported in Python"
    )


def _known(peft_type: Any, path: str | None) -> type[Adapter] | None:
    """Return the class if it has been imported; its module may have moved since the training."""
    if path is None:
        return Adapter.by_peft_type.get(peft_type) if isinstance(peft_type, str) else None
    kinds = [kind for kind in Adapter.imported if getattr(kind, "peft_type", None) == peft_type]
    kinds = [kind for kind in reversed(kinds) if not is_ours(kind)]  # the last: a notebook's newest
    name = path.rpartition(".")[2]
    same = [kind for kind in kinds if class_path(kind) == path]
    return next(iter([*same, *(kind for kind in kinds if kind.__name__ == name)]), None)
