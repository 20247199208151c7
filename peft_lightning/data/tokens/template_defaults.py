"""A chat template that prints what the training rows had: the defaults of other programs."""

import json
from collections.abc import Mapping
from typing import Any

from peft_lightning.data.tokens.template_sources import with_date


def with_defaults(
    source: str, variables: Mapping[str, Any], system: str | None, date: str | None
) -> str:
    """Return a template that does by itself what a run's options added to ``source``.

    Other programs know no options of ours: they render the template of the folder. What they are
    given still wins.

    Args:
        source: The chat template.
        variables: Variables that it has where they are not given.
        system: System message of conversations without one.
        date: Date, YYYY-MM-DD, that is printed as today's.
    """
    before = [
        f"{{%- if {name} is not defined %}}{{% set {name} = {literal(value)} %}}{{% endif %}}"
        for name, value in variables.items()
    ]
    if system is not None:
        message = f"[{{'role': 'system', 'content': {literal(system)}}}]"
        before.append(
            "{%- if not messages or messages[0]['role'] != 'system' %}"
            f"{{% set messages = {message} + messages %}}{{% endif %}}"
        )
    return "".join(before) + with_date(source, date)


def literal(value: Any) -> str:
    """Return a value of JSON as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(str(k))}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value if isinstance(value, int | float) else str(value), ensure_ascii=False)
