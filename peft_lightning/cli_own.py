"""Commands of our own: a function whose signature is its command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, auto_cli

from peft_lightning.cli_errors import explain, one_line
from peft_lightning.cli_given import read_given
from peft_lightning.cli_signatures import options_of


def run_function(function: Callable[..., Any], args: list[str], prog: str) -> None:
    """Call ``function`` with the options ``args``.

    Args:
        function: Its parameters are the options, its docstring their help.
        args: The command line after the command's name.
        prog: What the help calls the command.
    """
    given = read_given(args)
    try:
        auto_cli(
            function,
            args=args,
            as_positional=False,
            parser_class=ArgumentParser,
            prog=prog,
            allow_abbrev=False,
            exit_on_error=False,
        )
    except ArgumentError as error:
        raise ValueError(explain(given, options_of(function)) or one_line(error)) from error
