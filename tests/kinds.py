"""The kinds of a test, found in the code that it and its fixtures call: a list would grow old.

``process``: it starts a process. ``training``: it trains a run, or makes a trainer.
``processor``: its file uses code that is another one on another kind of processor.
"""

import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
FOLLOWED = (HERE, str(Path(__file__).parents[1] / "scripts"))  # what is called there counts
PROCESS = {"subprocess", "multiprocessing", "playwright", "warm_python"}  # modules that start one
FORKS = (os.fork, os.forkpty, os.posix_spawn)
TRAINER = "lightning.pytorch.trainer.trainer"
PROCESSOR = tuple(
    f"peft_lightning.{unit}"
    for unit in (
        "kernels.attention",
        "kernels.gated_mlp",
        "kernels.machine",
        "kernels.patch",
        "kernels.rms_norm",
        "kernels.rotary",
        "loss",
        "linear_cross_entropy",
        "kernels.native",
    )
)


def kinds(item: pytest.Function) -> set[str]:
    """Return which of "process", "training" and "processor" a test is."""
    functions = [item.function, *(definition.func for definition in _fixtures(item))]
    if hasattr(item, "callspec"):
        functions += [value for value in item.callspec.params.values() if callable(value)]
    found = set().union(*map(_reached, functions))
    return found | {"processor"} if _of_processor(item.module) else found


def _fixtures(item: pytest.Function) -> list[Any]:
    return [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]


@cache
def _reached(function: Callable[..., Any]) -> frozenset[str]:
    """Return the kinds that ``function`` makes of a test by what it calls in FOLLOWED."""
    found: set[str] = set()
    left: list[Any] = [function]
    seen: set[int] = set()
    while left:
        current = inspect.unwrap(left.pop())
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, type):
            left += [v for v in vars(current).values() if isinstance(v, types.FunctionType)]
        for value in _named(current):
            module = _module(value)
            if module.split(".")[0] in PROCESS or any(value is fork for fork in FORKS):
                found.add("process")
            elif module == TRAINER:
                found.add("training")
            elif callable(value) and _file(module).startswith(FOLLOWED):
                left.append(value)
    return frozenset(found)


def _named(function: Any) -> Iterator[Any]:
    """Yield the modules, functions and classes that the code of a function names."""
    if not isinstance(function, types.FunctionType):
        return
    names = set(_names(function.__code__))
    closure = inspect.getclosurevars(function).nonlocals if function.__closure__ else {}
    for name in names | closure.keys():
        value = closure.get(name, function.__globals__.get(name))
        if value is None and (name in PROCESS or _file(name).startswith(FOLLOWED)):
            value = sys.modules.get(name)  # imported within the function
        if isinstance(value, types.ModuleType):
            yield from (vars(value)[other] for other in names & vars(value).keys())
        if isinstance(value, type | types.ModuleType) or callable(value):
            yield value


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _module(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    return getattr(value, "__module__", None) or ""


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


@cache
def _of_processor(module: types.ModuleType) -> bool:
    return any(_module(value).startswith(PROCESSOR) for value in vars(module).values())
