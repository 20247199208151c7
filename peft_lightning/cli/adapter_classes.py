"""--adapter_class, an option of every command: adapters from outside of the package."""

from __future__ import annotations

from peft_lightning.messages import UserError


def take_adapter_classes(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the values of ``--adapter_class``, which every command has, and the other arguments.

    Raises:
        UserError: If one has no value.
    """
    classes, others, waiting = [], [], list(args)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        if name.replace("-", "_") != "__adapter_class":
            others.append(name + equals + value)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("-") else ""
        if not value:
            raise UserError("--adapter_class needs a dotted path, such as my_adapters.IA3")
        classes.append(value)
    return classes, others


def import_adapter_classes(paths: list[str]) -> None:
    """Import adapters from outside of the package, whose folders can be read from then on.

    Raises:
        UserError: If there is no such class, or it is no adapter.
    """
    if paths:
        from peft_lightning.adapters import Adapter
        from peft_lightning.cli.class_lookup import find_class

        for path in paths:
            if isinstance(found := find_class(path, (Adapter,)), str):
                raise UserError(f"--adapter_class: {found}")
