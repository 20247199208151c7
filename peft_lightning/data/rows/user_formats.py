"""A format of the user's own: a function that is named by its dotted path."""

import ast
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft_lightning.data.records import Record, RowError
from peft_lightning.data.rows.conversations import Conversation, PlainText, Row, validated
from peft_lightning.data.rows.format_functions import given_function
from peft_lightning.data.rows.formats import FORMATS
from peft_lightning.data.rows.loss_flags import parse_flag
from peft_lightning.messages import UserError, did_you_mean

_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_NEVER_OWN = {*sys.stdlib_module_names, "peft_lightning"}
# by name: the spec, which a reload replaces, and the source of a loaded module
_LOADED: dict[str, tuple[Any, str]] = {}


def load_user_format(name: str) -> Callable[[Record], Row | Record]:
    """Return the user's function at a dotted path, which may return a row or another record.

    What it returns may be a ``Conversation`` or ``PlainText``; text; a list of pairs of text and
    its weight in the loss; or, returned here as a record, a list of messages or a dict with the
    columns of a format.

    Raises:
        UserError: If there is no such function; suggests a similar name.
    """
    if (given := given_function(name)) is not None:
        return lambda record: _call(given, record, name.partition("#")[0])
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise UserError(
            f"no format {name!r}; there are auto, {', '.join(FORMATS)}, or the dotted path of a "
            "function of your own" + did_you_mean(name, [*FORMATS, "auto"])
        )
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"format {name!r}: cannot import {module_name!r} ({error})") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"format {name!r}: no function {function_name!r} in {module_name}"
            + did_you_mean(function_name, dir(module))
        )
    return lambda record: _call(function, record, name)


def _call(function: Callable[[Record], Any], record: Record, name: str) -> Row | Record:
    try:
        result = function(record)
    except RowError:
        raise
    except Exception as error:
        raise RowError(f"{name} raised {type(error).__name__}", str(error)) from error
    if isinstance(result, (Conversation, PlainText)):
        return validated(result)
    if isinstance(result, str):
        return {"text": result}
    if isinstance(result, dict) and result:
        return result
    if isinstance(result, (list, tuple)) and result:
        if all(isinstance(item, dict) for item in result):
            return {"messages": list(result)}
        if all(_is_segment(item) for item in result):
            return PlainText([(text, parse_flag("weight", weight)) for text, weight in result])
    raise UserError(
        f"format {name!r} returned {result!r:.80}; expected text, a list of messages, a list of"
        " (text, trained) pairs, a dict with the columns of a format, a Conversation or a PlainText"
        " (raise RowError to refuse a row)"
    )


def _is_segment(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], str)
        and isinstance(item[1], (bool, int, float))
    )


def format_cache_key(name: str) -> str:
    """Return the part of the cache key for a format: its name, and the user's source code.

    That of a user's function is the source of its module and of all that it imports, but for
    installed packages. A module that is loaded has the source that it had when it was first asked
    for: an edit since then is not what runs.
    """
    if name in FORMATS or given_function(name) is not None:  # whose name has a hash of it
        return name
    load_user_format(name)  # raises if it does not exist
    sys.path.insert(0, str(Path.cwd()))
    try:
        sources = _sources(name.rpartition(".")[0], {})
    finally:
        sys.path.remove(str(Path.cwd()))
    return "\n".join([name, *(sources[module] for module in sorted(sources))])


def _sources(module: str, found: dict[str, str]) -> dict[str, str]:
    """Add the source of ``module`` and of what it imports to ``found``."""
    file = _own_file(module)
    if file is None or module in found:
        return found
    found[module] = _source(module, file)
    if "." in module:  # whose folder's __init__.py runs first
        _sources(module.rpartition(".")[0], found)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(found[module])
    except (SyntaxError, ValueError):  # so nothing has imported it
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            _sources(name, found)
    return found


def _source(module: str, file: Path) -> str:
    loaded = sys.modules.get(module)
    spec, text = _LOADED.get(module, (None, ""))
    if loaded is None or spec is None or spec is not loaded.__spec__:
        text = file.read_text(encoding="utf-8", errors="replace")
        if loaded is not None:
            _LOADED[module] = loaded.__spec__, text
    return text


def _own_file(module: str) -> Path | None:
    """Return the file of a module that is not part of an installed package."""
    package = module.partition(".")[0]
    if package in _NEVER_OWN or not _is_own(_file_of(package), package):
        return None
    file = _file_of(module)
    return file if file is not None and file.is_file() and _is_own(file, module) else None


def _file_of(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    try:
        origin = inspect.getsourcefile(loaded) if loaded else None
        if not origin:
            spec = importlib.util.find_spec(module)
            origin = spec.origin if spec else None
    except (ImportError, AttributeError, TypeError, ValueError):
        return None  # a name in a module, not a module
    return Path(origin).resolve() if origin and origin.endswith(".py") else None


def _is_own(file: Path | None, module: str) -> bool:
    if file is None:  # perhaps a folder of modules
        return (Path.cwd() / module).is_dir()
    return not any(map(file.is_relative_to, _INSTALLED))
