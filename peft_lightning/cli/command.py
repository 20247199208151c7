"""Commands of our own: a function whose signature is its command line.

Its positional-only parameters and ``*rest`` are words, in their order; all others are options.
A function with ``*fit`` takes the options of fit too, and gets them as they are written.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from peft_lightning.cli.errors import explain, one_line
from peft_lightning.cli.given import read_given
from peft_lightning.cli.help import argument_docs
from peft_lightning.cli.signatures import options_of

LIST_OR_NONE = list[str] | None


def run_function(function: Callable[..., Any], args: list[str], prog: str) -> None:
    """Call ``function`` with the words and options ``args``.

    Args:
        function: Its parameters are the command line, its docstring the help.
        args: The command line after the command's name.
        prog: What the help calls the command.

    Raises:
        ValueError: If a word is missing or too many, or an option is unknown or wrong.
    """
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY]
    more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    usage = " ".join([prog, *map(str.upper, names), *([f"{more.upper()} ..."] if more else [])])
    parser = ArgumentParser(
        prog=prog,
        usage=f"{usage} [--OPTION VALUE ...]",
        description=_words_help(function, [*names, *([more] if more else [])]),
        allow_abbrev=False,
        exit_on_error=False,
    )
    if more != "fit":
        parser.add_argument("-c", "--config", action="config", help="YAML file with options.")
    parser.add_function_arguments(function, as_positional=False, skip=set(names))
    if "-h" in args or "--help" in args:
        parser.print_help()
        return
    words, options = _split(function, args, passes_on=more == "fit")
    if len(words) < len(names) + bool(more) or (len(words) > len(names) and not more):
        extra = words[len(names) :]
        problem = f"unexpected {extra[0]!r}" if extra else "too few words"
        raise ValueError(f"{problem}; usage: {usage}")
    given = read_given(options)
    try:
        values = parser.instantiate_classes(parser.parse_args(options))
    except ArgumentError as error:
        raise ValueError(explain(given, options_of(function)) or one_line(error)) from error
    function(*words, **{k: v for k, v in vars(values).items() if k != "config"})


def _words_help(function: Callable[..., Any], words: list[str]) -> str | None:
    """Return what the docstring says of each word."""
    docs = argument_docs(inspect.getdoc(function) or "")
    return "\n".join(f"{name.upper()}: {docs.get(name, '')}" for name in words) or None


def _split(
    function: Callable[..., Any], args: list[str], passes_on: bool
) -> tuple[list[str], list[str]]:
    """Return the words and the options among ``args``.

    A flag alone is true, and an option that takes a list may be given several times. ``dry-run``
    is ``dry_run``. With ``passes_on``, options of others are words.
    """
    known = options_of(function)
    flags = {f"--{name}" for name, option in known.items() if option.hint is bool}
    lists = {f"--{n}" for n, option in known.items() if option.hint in (list[str], LIST_OR_NONE)}
    words: list[str] = []
    options: list[str] = []
    waiting = list(args)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if not _is_option(name):
            words.append(name + equals + value)
            continue
        if (ours := name.removeprefix("--").replace("-", "_")) in known:
            name = f"--{ours}"
        elif passes_on:
            words.append(name + equals + value)
            if not equals and waiting and not _is_option(waiting[0]):
                words.append(waiting.pop(0))
            continue
        if name in flags and not equals:
            is_given = waiting and waiting[0].lower() in ("true", "false")
            equals, value = "=", waiting.pop(0) if is_given else "true"
        elif not equals and waiting and not _is_option(waiting[0]):
            equals, value = "=", waiting.pop(0)
        if name in lists and not value.startswith("["):
            name += "+"
        options.append(f"{name}={value}" if equals else name)
    return words, options


def _is_option(word: str) -> bool:
    return re.match(r"--?[a-zA-Z]", word) is not None
