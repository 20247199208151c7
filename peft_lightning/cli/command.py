"""Commands of this package: a function whose signature is its command line.

The options are parsed by jsonargparse. Positional-only parameters and ``*rest`` are words. They can
stand between the options, which argparse does not allow. A function with ``*fit`` takes the options
of ``fit`` too, and gets them as they are written, after the words.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError

from peft_lightning.cli.config_errors import RecordingParser, explain
from peft_lightning.cli.config_index import read_arguments, repeated_options
from peft_lightning.cli.errors import one_line
from peft_lightning.messages import UserError, print_one_line_warnings

MAY_BE_EMPTY = ("--prompt", "--prompt_template", "--system", "--stop")  # text
FILES = (".json",)  # of a flag that may be followed by the name of a file


def run_function(function: Callable[..., Any], args: list[str], prog: str) -> None:
    """Call ``function`` with the words and options ``args``.

    Args:
        function: Its parameters are the command line, its docstring the help.
        args: The command line after the command's name.
        prog: The name of the command in the help.

    Raises:
        UserError: If a word is missing or unexpected, or an option is unknown or wrong.
    """
    parameters = inspect.signature(function).parameters.values()
    own = [p for p in parameters if p.kind is p.POSITIONAL_ONLY]
    names, needed = [p.name for p in own], sum(p.default is p.empty for p in own)
    more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    shown = [n.upper() if i < needed else f"[{n.upper()}]" for i, n in enumerate(names)]
    usage = " ".join([prog, *shown, *([f"{more.upper()} ..."] if more else [])])
    parser = RecordingParser(
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
    words, options, passed = _split(parser, args, passes_on=more == "fit")
    words = [*words, *(p.default for p in own[len(words) :] if p.default is not p.empty), *passed]
    if len(words) < len(names) + (more is not None and needed == len(names)) or (
        len(words) > len(names) and not more
    ):
        extra = words[len(names) :]
        lacking = [n.upper() for n in [*names, *([more] if more else [])][len(words) :]]
        problem = f"unexpected {extra[0]!r}" if extra else f"{lacking[0]} is missing"
        raise UserError(f"{problem}; usage: {usage}")
    for option, given in repeated_options(options):
        raise UserError(f"{option} is given several times: {', '.join(given)}; leave one of them")
    index = read_arguments(options)
    parser.recorded.clear()
    try:
        values = parser.instantiate(parser.parse_args(options))
    except ArgumentError as error:
        raise UserError(explain(error, parser, index) or one_line(error)) from error
    print_one_line_warnings()
    function(*words, **{k: v for k, v in vars(values).items() if k != "config"})


def _words_help(function: Callable[..., Any], words: list[str]) -> str | None:
    """Return what the docstring says about each word."""
    found = parse_docstring(inspect.getdoc(function) or "").params
    docs = {p.arg_name: " ".join((p.description or "").split()) for p in found}
    return "\n".join(f"{name.upper()}: {docs.get(name, '')}" for name in words) or None


def _split(
    parser: RecordingParser, args: list[str], passes_on: bool
) -> tuple[list[Any], list[str], list[str]]:
    """Return the words and the options among ``args``, and the options of another command.

    A flag without a value is true, and an option with a list can be given several times.
    ``dry-run`` is ``dry_run``. Without ``passes_on`` an option of another command is an error.
    """
    known = parser._option_string_actions
    words: list[Any] = []
    options: list[str] = []
    passed: list[str] = []
    waiting = list(args)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if not _is_option(name):
            words.append(name + equals + value)
            continue
        if (right := name.replace("-", "_").replace("__", "--", 1)) in known:
            name = right
        elif name not in known and passes_on:
            passed.append(name + equals + value)
            if not equals and waiting and not _is_option(waiting[0]):
                passed.append(waiting.pop(0))
            continue
        hint = getattr(known.get(name), "_typehint", None)
        if not equals and (hint is bool or bool in typing.get_args(hint)):
            is_given = waiting and _is_value(waiting[0], hint)
            equals, value = "=", waiting.pop(0) if is_given else "true"
        elif not equals and waiting and not _is_option(waiting[0]):
            equals, value = "=", waiting.pop(0)
        if equals and not value and name not in MAY_BE_EMPTY:
            raise UserError(f"{name} is empty: give it a value, or leave it out")
        if f"{name}+" in known and not value.startswith("["):
            name += "+"
        options.append(f"{name}={value}" if equals else name)
    return words, options, passed


def _is_value(word: str, hint: Any) -> bool:
    """Whether a word after a flag belongs to it: true or false, or the file of one that has one."""
    is_file = str in typing.get_args(hint) and word.endswith(FILES)
    return is_file or word.lower() in ("true", "false")


def _is_option(word: str) -> bool:
    return re.match(r"--?[a-zA-Z]", word) is not None
