"""Files and folders that a command writes: never in the place of what it reads, or of another's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from peft_lightning.files.checksums import SUMS_FILE, read_checksums, sha256_of_json
from peft_lightning.messages import UserError, shortened

_ELSEWHERE = "give another place to write to"
CARD_FILE = "README.md"
_LONGEST_LINE = 2**24  # bytes; a row with its answer is shorter


class Kind(NamedTuple):
    """A kind of output.

    Args:
        name: As an error calls it, such as "merged model".
        files: Returns the names of the files in a folder that this package wrote, none for a
            single file; None for what it did not write.
        is_of_no_use: Whether what is there was left unfinished, or has failed, and may go.
    """

    name: str
    files: Callable[[Path], Collection[str] | None]
    is_of_no_use: Callable[[Path], bool] = lambda path: False


def require_output(
    out: str | Path, kind: Kind, inputs: Iterable[str | Path | None] = (), overwrite: bool = False
) -> None:
    """Check, before any work, that an output can be written and takes the place of nothing else.

    Args:
        out: The file or folder to write.
        kind: What it is.
        inputs: What the command reads; names that are no paths, as of a hub, are passed over.
        overwrite: Whether to replace one of this kind that this package wrote.

    Raises:
        UserError: If it would take the place of an input or of anything else, or its place cannot
            be written to.
    """
    require_no_input(out, inputs)
    path = Path(out).expanduser().resolve()
    if path.is_dir() and not any(path.iterdir()):
        pass  # nothing is lost
    elif path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{out} is neither a file nor a folder: {_ELSEWHERE}")
    elif path.exists() and not (path.is_file() and path.stat().st_size == 0):
        _require_ours(out, path, kind, overwrite)
    require_writable(out)


def _require_ours(out: str | Path, path: Path, kind: Kind, overwrite: bool) -> None:
    try:
        ours = kind.files(path)
    except (OSError, ValueError):  # damaged, or of another program
        ours = None
    if ours is None:
        raise UserError(
            f"{out} is there already, and is no {kind.name} that was written here: {_ELSEWHERE}"
        )
    if path.is_dir() and (others := {p.name for p in path.iterdir()} - set(ours)):
        raise UserError(
            f"{out} has other files in it, {shortened(sorted(others))}, which would be removed: "
            f"{_ELSEWHERE}"
        )
    if not overwrite and not kind.is_of_no_use(path):
        raise UserError(
            f"{out} is there already: --overwrite replaces this {kind.name}, or {_ELSEWHERE}"
        )


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
        source = Path(given).expanduser() if given else None
        if source is None or not source.exists():
            continue
        source = source.resolve()
        inside = source.is_dir() and source in target.parents
        if target == source or inside or target in source.parents:
            where = f"is within {given}" if inside else f"would take the place of {given}"
            raise UserError(f"{out} {where}, which is read: {_ELSEWHERE}")


def require_writable(out: str | Path) -> None:
    """Check that a file or folder can be made where ``out`` is to be, by making a nameless one.

    Raises:
        UserError: If it cannot; says why.
    """
    path = Path(out).expanduser().resolve()
    near = next(folder for folder in path.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=near):
            pass
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}, in {near}") from None


def sealed_files(folder: Path) -> set[str] | None:
    """Return the names of the files of a folder with checksums; None if it has none.

    A model card in it is one of them as long as nobody has edited it.
    """
    if not (folder / SUMS_FILE).is_file():
        return None
    return {SUMS_FILE, *read_checksums(folder), *unedited_card(folder)}


def sealed_card(card: str) -> str:
    """Return a model card with the hash of its text in a comment at its end."""
    return f"{card}<!-- peft_lightning {sha256_of_json(card)} -->\n"


def unedited_card(folder: Path) -> list[str]:
    """Return the name of the model card in a folder if it is as the command card wrote it."""
    file = folder / CARD_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    is_ours = bool(text) and sealed_card(text[: text.rfind("<!--")]) == text
    return [CARD_FILE] * is_ours


def marked_file(mark: str) -> Callable[[Path], Collection[str] | None]:
    """Return what knows a single file of ours by a mark in its first 4,096 bytes."""

    def files(file: Path) -> Collection[str] | None:
        if not file.is_file():
            return None
        with file.open("rb") as content:
            return () if mark.encode() in content.read(4096) else None

    return files


def answers_file(file: Path) -> Collection[str] | None:
    """Return no names for a JSONL file of rows with a "prediction" each, None for another file."""
    if not file.is_file():
        return None
    with file.open("rb") as lines:
        row = json.loads(lines.readline(_LONGEST_LINE))
    return () if isinstance(row, dict) and "prediction" in row else None


ANSWERS = Kind("file of answers", answers_file)
CARD = Kind("card", lambda file: () if unedited_card(file.parent) else None)
