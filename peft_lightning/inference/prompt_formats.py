"""How the prompts of a command are made: as its adapters were trained, unless options say else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from peft_lightning.adapters.bank import BASE
from peft_lightning.adapters.folder import read_facts
from peft_lightning.data import PromptFormat
from peft_lightning.inference.prompts import Prompts


def formats_of(
    folders: Mapping[str, str], given: Mapping[str, Any] | None = None
) -> dict[str, PromptFormat]:
    """Return the format of the prompts for each adapter; for ``base`` alone if there is none.

    Args:
        folders: The adapters' folders by name.
        given: Fields of ``PromptFormat`` that the user gives, and that win.

    Raises:
        UserError: If a folder's file cannot be read, or a field has a value that it cannot have.
    """
    formats = {name: PromptFormat.of_folder(read_facts(f), f) for name, f in folders.items()}
    formats = formats or {BASE: PromptFormat()}
    return {name: own.with_given(given or {}) for name, own in formats.items()}


def say_formats(formats: Mapping[str, PromptFormat], prompts: Prompts | None = None) -> None:
    """Print what makes the prompts, where that is not the tokenizer's template alone.

    Args:
        formats: By the name of the adapter.
        prompts: The prompts; None for a conversation.
    """
    alike = len(set(map(str, formats.values()))) == 1
    for name, prompt_format in list(formats.items())[: 1 if alike else None]:
        said = str(prompt_format)
        if prompt_format.prompt and prompts is not None and not prompts.fill(prompt_format):
            said += " (which the prompts do not fill: they are taken as a whole)"
        if said:
            print(f"prompts{'' if alike else f' of {name}'}: {said}", file=sys.stderr)
