"""Options of ``fit`` that another command takes and hands on: found before anything heavy is."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from peft_lightning.cli.config_index import CONFIG_OPTIONS, read_arguments, split_options
from peft_lightning.messages import UserError, did_you_mean

FIT_OPTIONS = ("config", "model", "data", "trainer", "seed_everything", "ckpt_path")
EVERYWHERE = ("adapter_class",)  # options of every command


def check_fit_options(command: str, args: Iterable[str], own: Iterable[str]) -> None:
    """Raise UserError for an option that ``fit`` would refuse by its first part.

    Args:
        command: The name of the command that takes them.
        args: Options of ``fit``.
        own: The names of the command's own options.
    """
    for option, value in split_options(list(args)):
        name = option.removeprefix("--").split(".")[0]
        if option in CONFIG_OPTIONS or (
            option.startswith("--") and name in FIT_OPTIONS + EVERYWHERE
        ):
            continue
        raise UserError(
            f"{option or value}: neither {command} nor fit has that option"
            + did_you_mean(name, [*FIT_OPTIONS, *own], show="--{}".format)
        )


def given_options(args: list[str]) -> dict[str, Any]:
    """Return the options of a command line and its config files, the last of each, by dotted key.

    Args:
        args: Options of ``fit``. It does not matter whether a value comes from a file.
    """
    given: dict[str, Any] = {}
    for _, value in read_arguments(args).entries:
        if isinstance(value.value, dict | list) and value.value:
            continue  # what is in it has keys of its own
        place = re.sub(r"\.class_path$", "", value.place)
        given[place] = value.value if not isinstance(value.value, str) else _plain(value.value)
    return given


def _plain(text: str) -> Any:
    """Return the text of an option as a config file has the value."""
    import yaml

    from peft_lightning.cli.config_index import _Loader

    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text
