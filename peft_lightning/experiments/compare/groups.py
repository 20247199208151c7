"""Groups of runs that differ only in their seed, and what differs between the groups."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from peft_lightning.experiments.compare.runs import Run

SECTIONS = ("model", "data", "trainer")
NOT_OF_THE_RESULT = {  # options that name a run, or decide where and how it is shown
    *("seed_everything", "trainer.default_root_dir", "trainer.logger", "ckpt_path"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps"),
    *("model.sample_prompts", "model.sample_max_new_tokens", "model.predict_max_new_tokens"),
    *("model.hidden_cache_gib", "data.cache_dir", "data.num_workers", "data.predict", "data.test"),
    *("data.allow_changed_data", "config"),
}
MOST_IN_NAME = 60  # characters; a longer name is that of the run's folder
_SEED_AT_END = re.compile(r"[-_/=. ]*(seed|s)?[-_/=. ]*$")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Args:
        name: What it has of its own: "r=4, learning_rate=0.001".
        options: The values of the options that differ between groups, by their short names.
        runs: The runs, in the order they were given.
    """

    name: str
    options: dict[str, Any]
    runs: list[Run]


def options_of(run: Run) -> dict[str, Any]:
    """Return the options of a run that its result depends on, by dotted name.

    An object is the name of its class, its arguments are options of their own:
    ``model.adapter`` is LoRA and ``model.adapter.r`` 16. Its own folder is ``<run>`` in a path.
    """
    flat: dict[str, Any] = {}
    for name in SECTIONS:
        _flatten(run.section(name), name, flat)
    for name in SECTIONS:
        path = (run.options.get(name) or {}).get("class_path")
        if path:
            flat[name] = str(path).rpartition(".")[2]
    for own in {str(run.record.folder), str(run.record.folder.resolve())}:
        flat = {k: v.replace(own, "<run>") if isinstance(v, str) else v for k, v in flat.items()}
    return {k: v for k, v in flat.items() if not _is_left_out(k)}


def differences(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Return the options in which runs differ: for each its value by the name of the run.

    A run without an option, such as one of another method, has no value of it. An option that
    only some runs have is a difference if they have different values of it.
    """
    options = {run.name: options_of(run) for run in runs}
    names = dict.fromkeys(name for found in options.values() for name in found)
    leaves = {n for n in names if not any(other.startswith(f"{n}.") for other in names)}
    found = {}
    for name in names:
        values = {run: of_run[name] for run, of_run in options.items() if name in of_run}
        if name not in leaves and len(values) < len(runs):
            inner = {
                run: {k.removeprefix(f"{name}."): v for k, v in of.items() if k.startswith(name)}
                for run, of in options.items()
                if run not in values
            }
            values |= {run: _text(value) for run, value in inner.items() if value}
        if len({_text(value) for value in values.values()}) > 1:
            found[name] = values
    return found


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of runs, in the order of the first run of each."""
    differ = differences(runs)
    short = short_names(differ)
    found: dict[str, list[Run]] = {}
    for run in runs:
        own = {name: values.get(run.name) for name, values in differ.items()}
        found.setdefault(json.dumps(own, sort_keys=True, default=str), []).append(run)
    groups = []
    for members in found.values():
        first = members[0].name
        options = {short[n]: v.get(first) for n, v in differ.items()}
        groups.append(Group(_name(options, members), options, members))
    taken = [group.name for group in groups]
    return [
        Group(g.runs[0].name, g.options, g.runs) if taken.count(g.name) > 1 else g for g in groups
    ]


def short_names(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return for each dotted name its shortest end that no other one has."""
    found = {}
    for name in names:
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            end = ".".join(parts[-depth:])
            others = [o for o in names if o != name and (o == end or o.endswith(f".{end}"))]
            if not others:
                break
        found[name] = end
    return found


def _name(options: Mapping[str, Any], members: Sequence[Run]) -> str:
    """Return the name of a group: what it has of its own, or of its first run if that is long."""
    parts = [
        shown(v) if k == "adapter" else f"{k}={shown(v)}"
        for k, v in options.items()
        if v is not None
    ]
    name = ", ".join(parts)
    if name and len(name) <= MOST_IN_NAME:
        return name
    letters = takewhile(
        lambda same: len(set(same)) == 1, zip(*(r.name for r in members), strict=False)
    )
    common = "".join(letter for letter, *_ in letters) if len(members) > 1 else ""
    return _SEED_AT_END.sub("", common) or members[0].name


def shown(value: Any) -> str:
    """Return an option's value for a table: short, numbers as they are written."""
    if isinstance(value, str) and len(value) > 24 and "/" in value:
        return f"\N{HORIZONTAL ELLIPSIS}/{Path(value).name}"
    if isinstance(value, list):
        return "+".join(map(shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flatten(value: Any, name: str, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and "class_path" in value:
        flat[name] = str(value["class_path"]).rpartition(".")[2]
        value = value.get("init_args") or {}
    elif not isinstance(value, Mapping) or (not value and name not in SECTIONS):
        flat[name] = value
        return
    for key, inner in value.items():
        _flatten(inner, f"{name}.{key}", flat)


def _is_left_out(name: str) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in NOT_OF_THE_RESULT)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
