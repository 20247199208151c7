"""Files and folders that a command writes: never in the place of what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from peft_lightning.messages import UserError


def require_no_input(out: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Check that an output is no input, lies in none, and holds none.

    Args:
        out: The file or folder to write.
        inputs: What the command reads; names that are no paths, as of a hub, are passed over.

    Raises:
        UserError: If it would take the place of one.
    """
    target = Path(out).expanduser().resolve()
    for given in inputs:
        source = Path(given).expanduser() if given is not None else None
        if source is None or not source.exists():
            continue
        source = source.resolve()
        inside = source.is_dir() and source in target.parents
        if target == source or inside or target in source.parents:
            where = f"is within {given}" if inside else f"would take the place of {given}"
            raise UserError(f"{out} {where}, which is read: give another place to write to")
