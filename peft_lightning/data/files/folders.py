"""The data files of a folder or a pattern: which are there, and which are meant."""

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from peft_lightning.data.files.compressed import DAMAGE
from peft_lightning.data.files.data_files import RECOGNISED, DataFile, data_file, kind_of
from peft_lightning.data.files.json_files import layout_of_file
from peft_lightning.data.files.saved_datasets import (
    DICT_FILE,
    SIDE_FILES,
    STATE_FILE,
    read_object,
    saved_files,
)
from peft_lightning.data.files.split_names import (
    MEANT,
    SPLIT_WORDS,
    choose_split,
    none_meant,
    split_of,
)
from peft_lightning.messages import UserError, shortened

WILDCARDS = "*?["


@dataclass(frozen=True)
class FoundFiles:
    """The data files that a path stands for.

    Args:
        files: Those that are read, in the order of their names.
        left_out: The names of the other files in the folder.
    """

    files: tuple[DataFile, ...]
    left_out: tuple[str, ...] = ()


def find_files(
    path: str, purpose: str | None, split: str | None, encoding: str | None
) -> FoundFiles | None:
    """Return the data files that ``path`` stands for: a file, a folder or a pattern.

    Args:
        path: The path as the user wrote it, without ``[split]``.
        purpose: The option of the data that they are for, a key of ``MEANT``; None for all files.
        split: The split that the user named; it is taken instead of those for ``purpose``.
        encoding: Encoding of text files; None for UTF-8.

    Returns:
        The files; None if there is no such file or folder and no file of the pattern.

    Raises:
        UserError: If there are files, and none of them is a data file that is meant.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        if (local / DICT_FILE).is_file():
            names = read_object(local / DICT_FILE).get("splits")
            chosen = _chosen([str(name) for name in names or []], purpose, split, path)
            inner = [find_files(str(local / name), None, None, encoding) for name in chosen]
            rest = tuple(f"{name}/" for name in names or [] if name not in chosen)
            return FoundFiles(tuple(f for found in inner if found for f in found.files), rest)
        names = sorted(_walk(local, set()))
    elif local.is_file():
        file = _with_keys(data_file(local), purpose, split, encoding, path)
        if split is not None and not file.keys:
            raise UserError(
                f"{path} has no splits, leave [{split}] out; data.max_rows limits the rows"
            )
        return FoundFiles((file,))
    elif local.is_symlink() and not local.exists():
        raise _broken_link(local)
    elif local.exists():
        raise UserError(f"{path}: a pipe or device; rows are read several times, write a file")
    elif any(character in path for character in WILDCARDS):
        matches = [Path(m) for m in glob.glob(str(local), recursive=True)]
        if broken := [match for match in matches if match.is_symlink() and not match.exists()]:
            raise _broken_link(broken[0])
        names = sorted({f for m in matches for f in (_walk(m, set()) if m.is_dir() else [m])})
        if not names:
            return None
        local = _fixed_part(local)
    else:
        return None
    files, left_out = _data_files(names, encoding)
    if not files:
        raise UserError(f"{path}: no data file in this folder; they end in {RECOGNISED}")
    chosen_files = _meant(files, local, purpose, split, path)
    left_out += [file.path for file in files if file not in chosen_files]
    return FoundFiles(
        tuple(_with_keys(file, purpose, split, encoding, path) for file in chosen_files),
        tuple(_relative(file, local) for file in sorted(left_out)),
    )


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """Yield the files of a folder and its folders, hidden ones left out, each folder once."""
    seen.add(os.path.realpath(folder))
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if os.path.realpath(path) not in seen:
                yield from _walk(path, seen)
        elif path.is_file():
            yield path
        elif path.is_symlink() and kind_of(path.name) is not None:
            raise _broken_link(path)


def _broken_link(path: Path) -> UserError:
    return UserError(f"{path}: a link to {os.readlink(path)}, which is not there")


def _data_files(names: list[Path], encoding: str | None) -> tuple[list[DataFile], list[Path]]:
    """Return the data files among ``names``, and the other files."""
    saved = {path.parent: saved_files(path.parent) for path in names if path.name == STATE_FILE}
    files: list[DataFile] = []
    left_out: list[Path] = []
    for path in names:
        kept = saved.get(path.parent)
        if path.name in SIDE_FILES or (kept is None and kind_of(path.name) is None):
            left_out.append(path)
        elif kept is None:
            files.append(data_file(path))
        elif path not in [file.path for file in kept]:
            left_out.append(path)  # a cache of datasets
    for kept in saved.values():
        files += kept or []
    single = {file for file in files if _is_single_row(file, encoding)}
    if len(single) < len(files):  # beside files of rows, an object alone says something about them
        files = [file for file in files if file not in single]
        left_out += [file.path for file in single]
    files.sort(key=lambda file: file.path.parent)  # stable: the order of a saved state stays
    return files, left_out


def _is_single_row(file: DataFile, encoding: str | None) -> bool:
    if file.kind != "json":
        return False
    try:
        layout = layout_of_file(file, encoding)
    except (UserError, *DAMAGE):  # the reader reports it
        return False
    return layout is not None and layout.is_row


def _with_keys(
    file: DataFile, purpose: str | None, split: str | None, encoding: str | None, source: str
) -> DataFile:
    """Return ``file`` with the keys that are meant, if it is an object with a key per split."""
    if file.kind != "json":
        return file
    try:
        layout = layout_of_file(file, encoding)
    except (UserError, *DAMAGE):
        return file
    if layout is None or not layout.has_splits:
        return file
    return replace(file, keys=tuple(_chosen(layout.keys, purpose, split, source)))


def _chosen(
    names: list[str] | tuple[str, ...], purpose: str | None, split: str | None, source: str
) -> list[str]:
    if split is None:
        return choose_split(names, purpose, source)
    if split not in names:
        raise UserError(f"{source} has no split {split!r}; there are {shortened(names)}")
    return [split]


def _meant(
    files: list[DataFile], folder: Path, purpose: str | None, split: str | None, source: str
) -> list[DataFile]:
    """Return the files that are meant for ``purpose``, or are of the split that the user named."""
    if split is not None:
        named = [file for file in files if _is_of(file.path.relative_to(folder), split)]
        if not named and not all(file.kind == "json" for file in files):
            there = shortened([_relative(file.path, folder) for file in files])
            raise UserError(f"{source}: no file of the split {split!r}; there are {there}")
        return named or files
    splits = {file: _split_of_path(file.path.relative_to(folder)) for file in files}
    found = [s for s in dict.fromkeys(splits.values()) if s is not None]
    if purpose is None or not found:
        return files
    for wanted in MEANT[purpose]:
        if wanted in found:
            return [file for file in files if splits[file] == wanted]
    if purpose == "predict":
        return files
    unnamed = [file for file in files if splits[file] is None]
    if purpose == "train" and unnamed:
        return unnamed
    raise none_meant(source, found, purpose)


def _split_of_path(path: Path) -> str | None:
    """Return the split of a file's name, or of the innermost folder that is named like one."""
    return next((s for s in map(split_of, reversed(path.parts)) if s is not None), None)


def _is_of(path: Path, split: str) -> bool:
    """Whether a file is of the split that the user named: a folder, or how its name begins."""
    names = next((w for w in SPLIT_WORDS.values() if split.lower() in w), None)
    if names is not None:
        return _split_of_path(path) == split_of(split)
    return split in path.parts[:-1] or path.name.startswith((f"{split}-", f"{split}."))


def _fixed_part(pattern: Path) -> Path:
    """Return the folder of a pattern that precedes its first wildcard."""
    fixed = Path(*[])
    for part in pattern.parts:
        if any(character in part for character in WILDCARDS):
            break
        fixed /= part
    return fixed


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
