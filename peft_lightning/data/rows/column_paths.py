"""Paths into the objects of a column, such as ``answers.text[0]``."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from peft_lightning.data.records import Finding, Record, RowError
from peft_lightning.data.rows.json_text import parse_json
from peft_lightning.messages import did_you_mean

_STEPS = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


def root_of(name: str, columns: Collection[str]) -> str:
    """Return the column that a name means: that of the name, or the one in which its path begins.

    Args:
        name: A column or a path. A column that has dots in its own name is that column.
        columns: The columns of a row. If none is meant, the name is returned.
    """
    if name in columns:
        return name
    return max((c for c in columns if name.startswith((f"{c}.", f"{c}["))), key=len, default=name)


def value_at(record: Record, name: str) -> Any:
    """Return the value of a column or of a path into one; None where something on it is null.

    Raises:
        KeyError: If there is no such column.
        RowError: If the path leads nowhere; says how far it leads.
    """
    if name in record:
        return record[name]
    root = root_of(name, record)
    value, so_far = record[root], root
    for key, index in _steps(root, name):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            value = parse_json(value, so_far)
        if value is None:
            return None
        if index:
            if not isinstance(value, (list, tuple)):
                raise _nowhere(name, f"{so_far} is no list but {type(value).__name__}")
            if int(index) >= len(value):
                raise _nowhere(name, f"{so_far} has {len(value)} values")
            value, so_far = value[int(index)], f"{so_far}[{index}]"
            continue
        if not isinstance(value, Mapping):
            first = f"; write {so_far}[0].{key} for the first" * isinstance(value, (list, tuple))
            raise _nowhere(name, f"{so_far} is no object but {type(value).__name__}{first}")
        if key not in value:
            raise _nowhere(name, f"{so_far} has {list(value)}{did_you_mean(key, map(str, value))}")
        value, so_far = value[key], f"{so_far}.{key}"
    return value


def unread_beside(record: Record, names: Iterable[str]) -> list[Finding]:
    """Return a finding for what no path reads of the columns in which paths begin.

    Args:
        record: A row.
        names: The columns and paths that are read.
    """
    paths = [name for name in names if name not in record and root_of(name, record) in record]
    findings = []
    for root in dict.fromkeys(root_of(name, record) for name in paths):
        firsts = [_steps(root, name)[0] for name in paths if root_of(name, record) == root]
        value = record.get(root)
        if isinstance(value, str):
            value = parse_json(value, root)
        if isinstance(value, Mapping):
            keys = {key for key, _ in firsts}
            unread = [k for k, v in value.items() if k not in keys and v not in (None, "", [], {})]
            findings += [Finding("unused column", f"{root}.{key}") for key in unread]
        elif isinstance(value, (list, tuple)) and len(value) > len({i for _, i in firsts}):
            findings.append(Finding("unused column", f"{root}[...]"))
    return findings


def _steps(root: str, name: str) -> list[tuple[str, str]]:
    """Return the keys and indices of a path behind its column: of each pair, one is empty."""
    rest = name[len(root) :]
    steps = _STEPS.findall(rest)
    if "".join(f".{key}" if key else f"[{index}]" for key, index in steps) != rest:
        raise _nowhere(name, "a path is written as answers.text or answers.text[0]")
    return steps


def _nowhere(name: str, why: str) -> RowError:
    return RowError(f"no value at {name!r}", why)
