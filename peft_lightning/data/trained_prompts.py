"""The prompts of a run: what an adapter's folder keeps of them, and what predict takes from it."""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from peft_lightning.data.options import RowOptions, TokenOptions
from peft_lightning.data.prompt_format import PromptFormat
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.messages import UserError

_OF_ROWS = ("system_prompt", "prompt")
_NAMES = tuple(f.name for f in fields(PromptFormat))


def prompt_format_of(data: Any, row_tokenizer: RowTokenizer) -> PromptFormat:
    """Return how the prompts of a data module's rows are made.

    Args:
        data: The ``SFTDataModule``.
        row_tokenizer: Its row tokenizer.
    """
    values = _options_of(data)
    if data.chat_template not in (None, "none"):  # the source, as the file may change
        values["chat_template"] = row_tokenizer.templates["default"]
    values["template_date"] = row_tokenizer.date
    return PromptFormat(**values)


def common_format(formats: dict[str, PromptFormat]) -> PromptFormat:
    """Return the prompt format of several adapters, whose prompts are encoded once for all.

    Raises:
        UserError: If they were trained with different ones.
    """
    first, *others = formats
    for name in others:
        if formats[name] != formats[first]:
            ways = "; ".join(str(formats[n]) or "the defaults" for n in (first, name))
            raise UserError(
                f"{first} and {name} were trained with different prompts ({ways}), and predict"
                " makes the same for all: use generate --file"
            )
    return formats[first]


def use_prompt_format(
    data: Any, trained: PromptFormat, given: Collection[str] | None = None
) -> str:
    """Let a data module make prompts as those that an adapter was trained with.

    Args:
        data: The ``SFTDataModule``, before its ``setup``; changed in place.
        trained: The prompts of the training.
        given: Names of options that the user gives, and that win; None for those that are not at
            their defaults.

    Returns:
        What is taken over, for one line; "" if that is nothing.
    """
    own = _options_of(data)
    if given is None:
        given = [name for name in _NAMES if own[name] != _DEFAULTS[name]]
    taken = {n: v for n, v in trained.facts().items() if n not in given and own[n] != v}
    if not taken:
        return ""
    data.tokenizer_name = taken.get("tokenizer", data.tokenizer_name)
    data.chat_template = taken.get("chat_template", data.chat_template)
    of_rows = {name: value for name, value in taken.items() if name in _OF_ROWS}
    of_tokens = {n: v for n, v in taken.items() if n in TokenOptions.__dataclass_fields__}
    data.row_options = replace(data.row_options, **of_rows)
    data.token_options = replace(data.token_options, **of_tokens)
    return str(PromptFormat(**taken))


def left_out(data: Any, trained: PromptFormat) -> str:
    """Return in which options a run differs from the training that it goes on from; "" for none.

    Its tokenizer and chat template are not among them: they go on with the adapter.
    """
    own, kept = _options_of(data), ("tokenizer", "chat_template")
    left = {n: v for n, v in trained.facts().items() if n not in kept and own[n] != v}
    if not left:
        return ""
    here = ", ".join(f"data.{name} {own[name]}" for name in left)
    return f"{PromptFormat(**left)}, and here it is {here}"


def _options_of(data: Any) -> dict[str, Any]:
    return _values(data.tokenizer_name, data.chat_template, data.row_options, data.token_options)


def _values(
    tokenizer: Any, chat_template: str | None, rows: RowOptions, tokens: TokenOptions
) -> dict[str, Any]:
    """Return the values of the fields of ``PromptFormat``."""
    if tokenizer is not None:  # one in hand has the name that it was loaded by, if it was
        tokenizer = str(getattr(tokenizer, "name_or_path", tokenizer)) or None
    values = {"tokenizer": tokenizer, "chat_template": chat_template}
    values |= {name: getattr(rows, name) for name in _OF_ROWS}
    return values | {name: getattr(tokens, name) for name in _NAMES if name not in values}


_DEFAULTS = _values(None, None, RowOptions(), TokenOptions())
