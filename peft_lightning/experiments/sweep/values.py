"""What ``--vary`` says: options and the values that they take, or the range to draw them from."""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from typing import Any

import yaml

from peft_lightning.messages import UserError, join_or

OPENING, CLOSING = "[{(", "]})"
INTEGER = re.compile(r"[-+]?(0|[1-9]\d*)")
FLOAT = re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?")
FIXED = {"true": True, "false": False, "null": None}
DRAWS = ("uniform", "log", "int")
DIGITS = 3  # significant ones of a number that is drawn, so that a folder's name shows all of it
KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
EXAMPLE = "--vary model.adapter.r=2,4,8"


@dataclass(frozen=True)
class Draw:
    """A range that values are drawn from.

    Args:
        kind: "uniform"; "log", whose logarithm is uniform; "int", a whole number, both ends
            included.
        low: The least value.
        high: The largest.
    """

    kind: str
    low: float
    high: float

    def sample(self, draw: random.Random) -> float | int:
        """Return a value, of ``DIGITS`` significant digits unless it is a whole number."""
        if self.kind == "int":
            return draw.randint(int(self.low), int(self.high))
        if self.kind == "log":
            value = math.exp(draw.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = draw.uniform(self.low, self.high)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Vary:
    """Options that vary together.

    Args:
        keys: The options, such as ``model.adapter.r``.
        choices: What they are set to, a value for each of them.
        draw: The range that the only one of them is drawn from, in place of ``choices``.
    """

    keys: tuple[str, ...]
    choices: tuple[tuple[Any, ...], ...] = ()
    draw: Draw | None = None

    def sample(self, draw: random.Random) -> tuple[Any, ...]:
        """Return values of a draw, or a choice."""
        return draw.choice(self.choices) if self.draw is None else (self.draw.sample(draw),)


def read_vary(text: str) -> Vary:
    """Return what one ``--vary`` says.

    Args:
        text: ``KEY=VALUE,VALUE``; options that vary together as ``KEY,KEY=VALUE:VALUE,...``; a
            range as ``KEY=log:1e-4..1e-2``. A value may be a list or a mapping in YAML.

    Raises:
        UserError: If it is not written so, or names an option or a value twice.
    """
    left, equals, right = text.partition("=")
    keys = tuple(key.strip().removeprefix("--") for key in left.split(","))
    if not equals or not all(KEY.fullmatch(key) for key in keys):
        raise UserError(f"--vary {text}: write an option and its values, as {EXAMPLE}")
    if len({plain_key(key) for key in keys}) < len(keys):
        raise UserError(f"--vary {text}: an option is there twice")
    if (draw := _read_draw(text, right)) is not None:
        if len(keys) > 1:
            raise UserError(f"--vary {text}: a range is for one option; give each its own --vary")
        return Vary(keys, draw=draw)
    choices = tuple(_read_choice(text, keys, part) for part in split_outside(right, ","))
    if twice := [c for i, c in enumerate(choices) if c in choices[:i]]:
        shown = ":".join(map(str, twice[0]))
        raise UserError(f"--vary {text}: {shown} is there twice; leave one of them")
    return Vary(keys, choices)


def plain_key(key: str) -> str:
    """Return an option without ``init_args``, which may be left out: ``model.adapter.r``."""
    return key.replace(".init_args", "")


def _read_choice(text: str, keys: tuple[str, ...], part: str) -> tuple[Any, ...]:
    values = [part] if len(keys) == 1 else split_outside(part, ":")
    if len(values) != len(keys) or not all(value.strip() for value in values):
        right = EXAMPLE
        if len(keys) > 1:
            right = "--vary model.adapter.r,model.adapter.lora_alpha=2:4,4:8"
        raise UserError(
            f"--vary {text}: {part!r} is not a value for each of {len(keys)} options, as in {right}"
        )
    return tuple(map(read_value, values))


def _read_draw(text: str, right: str) -> Draw | None:
    kind, colon, ends = right.partition(":")
    if not colon or ".." not in ends or "," in ends or not kind.isalpha():
        return None
    if kind not in DRAWS:
        raise UserError(f"--vary {text}: a range is {join_or([f'{d}:LOW..HIGH' for d in DRAWS])}")
    low, high = (read_value(end) for end in ends.split("..", 1))
    number = int if kind == "int" else int | float
    if not (isinstance(low, number) and isinstance(high, number) and low < high):
        wanted = "two whole numbers" if kind == "int" else "two numbers"
        raise UserError(f"--vary {text}: a range is {wanted}, the smaller first")
    if kind == "log" and low <= 0:
        raise UserError(f"--vary {text}: the ends of a log range must be above 0")
    return Draw(kind, low, high)


def read_value(text: str) -> Any:
    """Return a value as the command line of ``fit`` reads it.

    Raises:
        UserError: If a list or mapping is not written as YAML.
    """
    text = text.strip()
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    if text in FIXED:
        return FIXED[text]
    if text[:1] in (*OPENING, '"', "'"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            fault = f"{text!r} is not a list or mapping in YAML, as [q_proj, v_proj]"
            raise UserError(fault) from None
    return text


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a separator that is not within brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING)
        if character == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts
