"""The points of a sweep: products of values, draws and lists of settings, each with its seeds."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from peft_lightning.experiments.sweep.values import Vary, plain_key, read_value
from peft_lightning.messages import UserError

Settings = dict[str, Any]  # options with their values; one point of the sweep
SEED = "seed_everything"
NAME = "name"  # of a listed point: no option, but what its folder is called after
SECTIONS = ("model", "data", "trainer")
CLASS_KEYS = {"class_path", "init_args"}
TRIES = 100  # draws for each new point, before a space is held to be exhausted


def make_points(
    varied: Sequence[Vary],
    listed: Sequence[Settings] = (),
    seeds: Sequence[int] = (),
    draws: int | None = None,
    draw_seed: int = 0,
) -> list[Settings]:
    """Return the points: every combination of what is listed, varied and the seeds.

    Args:
        varied: The options of each ``--vary``.
        listed: Settings that go together, of ``--points``.
        seeds: Of the runs; those of a point follow each other.
        draws: Draw so many different combinations instead of taking all of them. The first ones
            of a larger number are those of a smaller one.
        draw_seed: Of the draws.

    Raises:
        UserError: If there is nothing to vary, an option is varied twice, a range comes without
            ``draws``, or there are fewer combinations than ``draws``.
    """
    if not varied and not listed and not seeds:
        raise UserError(
            "nothing to vary: give --vary model.adapter.r=2,4,8, --points FILE or --seeds 0,1,2"
        )
    _check_keys(varied, listed, seeds)
    ranges = [vary for vary in varied if vary.draw is not None]
    if draws is None:
        if ranges:
            raise UserError(f"{ranges[0].keys[0]} has a range: say how many points, as --random 20")
        combinations = list(itertools.product(*(vary.choices for vary in varied)))
    else:
        combinations = _draw(varied, draws, draw_seed)
    keys = [plain_key(key) for vary in varied for key in vary.keys]
    points = []
    for whole, values in itertools.product(listed or [{}], combinations):
        own = dict(zip(keys, itertools.chain(*values), strict=True))
        points += [{**whole, **own, **seed} for seed in [{SEED: s} for s in seeds] or [{}]]
    return points


def _check_keys(varied: Sequence[Vary], listed: Sequence[Settings], seeds: Sequence[int]) -> None:
    keys = [plain_key(key) for vary in varied for key in vary.keys]
    keys += list({key for settings in listed for key in settings})
    if SEED in [plain_key(key) for vary in varied for key in vary.keys]:
        raise UserError("give the seeds as --seeds 0,1,2")
    keys += [SEED] * bool(seeds)
    if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
        raise UserError(f"{twice[0]} is varied twice; give all its values at one place")


def _draw(varied: Sequence[Vary], count: int, seed: int) -> list[tuple[Any, ...]]:
    if count < 1 or not varied:
        need = "at least 1" if varied else "--vary, which says what to draw"
        raise UserError(f"--random {count} needs {need}")
    if all(vary.draw is None for vary in varied):
        there = math.prod(len(vary.choices) for vary in varied)
        if count > there:
            raise UserError(f"--random {count}: there are {there} combinations; leave it out")
    draw = random.Random(seed)
    found: list[tuple[Any, ...]] = []
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        point = tuple(vary.sample(draw) for vary in varied)
        if point not in found:
            found.append(point)
    if len(found) < count:
        raise UserError(f"--random {count}: only {len(found)} different points were found")
    return found


def read_seeds(text: str) -> list[int]:
    """Return the seeds of ``0,1,2`` or ``0-4``.

    Raises:
        UserError: If it is not written so, or one is there twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.strip().isdecimal() for end in ends):
            raise UserError(f"--seeds {text}: write whole numbers, as 0,1,2 or 0-4")
        seeds += range(int(ends[0]), int(ends[1]) + 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text}: write each seed once, the smaller first, as 0,1,2 or 0-4")
    return seeds


def read_points(path: Path) -> list[Settings]:
    """Return the settings of a YAML file: a list of mappings.

    Args:
        path: Each mapping has dotted options, ``model.adapter.r: 8``, or sections as a config; its
            ``name`` stands in the names of folders for all that it lists, which come before it.

    Raises:
        UserError: If there is no such file or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"--points {path}: there is no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--points {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"--points {path} must hold a list: - {{model.adapter.r: 8}}")
    points: list[Settings] = []
    for number, item in enumerate(content, 1):
        if not isinstance(item, dict) or not item:
            raise UserError(f"--points {path}: point {number} is no mapping of options to values")
        name = item.get(NAME, "")
        options = {key: value for key, value in item.items() if key != NAME}
        settings = {plain_key(key): value for key, value in _flat("", options)}
        if not isinstance(name, str) or name in [point.get(NAME) for point in points]:
            raise UserError(f"--points {path}: the name of point {number} is a text of its own")
        settings |= {NAME: name} if name else {}
        if settings in points:
            raise UserError(f"--points {path}: point {number} is there twice")
        points.append(settings)
    return points


def _flat(place: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Yield the options of a mapping; one that is itself the value of an option stays whole."""
    is_class = isinstance(value, dict) and bool(CLASS_KEYS & value.keys())
    is_section = isinstance(value, dict) and (
        place in ("", *SECTIONS) or place.endswith("init_args")
    )
    if not (is_class or is_section):
        yield place, read_value(value) if isinstance(value, str) else value
        return
    for name, inner in value.items():
        if is_class and name == "class_path":
            yield place, inner
        else:
            yield from _flat(f"{place}.{name}" if place else str(name), inner)


def as_options(settings: Settings) -> list[str]:
    """Return settings as options of ``fit``."""
    return [f"--{key}={_as_text(value)}" for key, value in settings.items() if key != NAME]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def without_seed(settings: Settings) -> Settings:
    """Return the settings that the runs of a group, which differ in their seed, share."""
    return {key: value for key, value in settings.items() if key != SEED}
