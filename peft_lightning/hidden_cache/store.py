"""Files of what the frozen lower layers make of each row: computed once, then read from disk.

One folder for each source of rows, named by a hash of all that decides the values: base, dtype,
layers, tokens, versions. Rows are found by their tokens, so shuffling, batch sizes and resumes
do not matter. The values are computed row by row in the order of the file, some rows at a time:
every run reads the very same numbers. They may differ in the last bit from those of a batch of
other neighbours, as matrix products of other sizes do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from peft_lightning.files import (
    atomic_folder,
    cannot_be_used,
    is_denied,
    own_name,
    sha256_of_json,
)
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress

VERSION = 1  # raise it when the same rows would get other values
TOKENS_AT_ONCE = 4096
ROWS = np.dtype([("digest", "S16"), ("start", "<i8"), ("length", "<i4"), ("crc", "<u4")])

Batch = dict[str, Any]
Announce = Callable[[str], None]


class TokenRows(Protocol):
    """Tokenised rows of one source; ``folder``'s name is a hash of all that decides them."""

    folder: Path

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The rows' numbers of tokens."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, NDArray[np.int64]]: ...


class HiddenStates:
    """The states of one source's rows, mapped from disk as they are asked for.

    Args:
        folder: Holds ``states.bin``, all rows end to end, ``rows.npy``, sorted by the digest of
            their tokens, and ``meta.json``.

    Raises:
        UserError: If a file is missing, torn, or not what ``meta.json`` says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            meta = json.loads((folder / "meta.json").read_text())
            self._rows = np.load(folder / "rows.npy", mmap_mode="r")
            self._file = (folder / "states.bin").open("rb")
            self._dtype, self._width = getattr(torch, meta["dtype"]), int(meta["width"])
        except (OSError, EOFError, KeyError, ValueError) as error:  # EOFError: an empty file
            raise UserError(f"{folder}: no whole cache of states ({error})") from error
        size = os.fstat(self._file.fileno()).st_size
        if (len(self._rows), size) != (meta["rows"], meta["bytes"]) or self._rows.dtype != ROWS:
            raise UserError(f"{folder}: no whole cache of states (its files disagree)")
        os.utime(folder)  # the least recently used ones make room for others

    def find(self, ids: NDArray[np.int64]) -> Tensor | None:
        """Return the states of the row with these tokens, (n, d); None if there is none.

        Raises:
            UserError: If what was written has changed on the disk.
        """
        digest = _digest(ids)
        place = np.searchsorted(self._rows["digest"], digest)
        if place == len(self._rows) or self._rows["digest"][place] != digest:
            return None
        row = self._rows[place]
        size = self._width * self._dtype.itemsize
        values = np.array(
            np.memmap(self._file, "u1", "r", int(row["start"]) * size, (len(ids) * size,))
        )
        if row["length"] != len(ids) or zlib.crc32(values.data) != row["crc"]:
            raise UserError(
                f"{self.folder} is damaged: remove it, and the states are computed anew"
            )
        return torch.from_numpy(values).view(self._dtype).view(len(ids), self._width)


def _writable(root: Path) -> Path:
    """Return the folder of the states: ``root``, or one beside it if that is another user's.

    Raises:
        UserError: If neither can be written.
    """
    problem = None
    for place in (root, root.with_name(own_name(root.name))):
        try:
            place.mkdir(parents=True, exist_ok=True)
            (place / ".lock").open("a").close()
            return place
        except OSError as error:
            if not is_denied(error):
                raise
            problem = error
    assert problem is not None
    raise cannot_be_used(root.parent, problem) from problem


def frozen_states(
    run: Callable[[Batch], Tensor],
    sources: Sequence[TokenRows],
    facts: Mapping[str, Any],
    *,
    flat: bool,
    limit: int,
    announce: Announce,
) -> list[HiddenStates]:
    """Open the states of ``sources``, or compute them; one process does, others wait for it.

    Args:
        run: The frozen layers' output, (B, T, d), for a batch without labels.
        sources: The rows; the states are in ``frozen`` beside their tokens.
        facts: What else decides the values: base, precision, number of layers and the like.
        flat: Whether the model takes several rows as a flat batch; else they run one by one.
        limit: Most bytes of all such caches in that folder; those used last longest ago are
            removed to make room.
        announce: Is told what is written, before it is.

    Raises:
        UserError: If these rows alone need more than ``limit`` or than the disk has left.
    """
    sample = run(batch_of([sources[0][0]["input_ids"]], flat))
    form = {"dtype": str(sample.dtype).removeprefix("torch."), "width": sample.shape[-1]}
    versions = [VERSION, torch.__version__, transformers.__version__]
    facts = {**facts, **form, "flat": flat, "versions": versions}
    token_bytes = sample.shape[-1] * sample.dtype.itemsize
    root = sources[0].folder.parent / "frozen"
    root = _writable(root)
    folders = {_name({**facts, "tokens": source.folder.name}): source for source in sources}
    needed = sum(int(source.lengths.sum()) for source in sources) * token_bytes
    if needed > limit:
        raise UserError(
            f"cache_hidden_states would write {needed:,} bytes, and hidden_cache_gib allows "
            f"{limit:,}: raise it, or set cache_hidden_states to false"
        )
    opened = []
    for name, source in folders.items():
        states = _whole(root / name)
        if states is None:
            with FileLock(root / ".lock"):
                states = _whole(root / name)  # another process may have made it meanwhile
                if states is None:
                    tokens = int(source.lengths.sum())
                    _make_room(root, tokens * token_bytes, limit, keep=set(folders))
                    announce(
                        f"cache_hidden_states: {len(source):,} rows x {tokens / len(source):,.1f} "
                        f"tokens x {form['width']} x {sample.dtype.itemsize} bytes = "
                        f"{tokens * token_bytes:,} bytes in {root / name}"
                    )
                    started = time.monotonic()
                    _make(root / name, run, source, form, flat)
                    announce(f"cache_hidden_states: written in {time.monotonic() - started:,.1f} s")
                    states = HiddenStates(root / name)
        opened.append(states)
    return opened


def _whole(folder: Path) -> HiddenStates | None:
    try:
        return HiddenStates(folder)
    except ValueError:
        return None


def _make_room(root: Path, needed: int, limit: int, keep: set[str]) -> None:
    """Remove caches until ``needed`` bytes are within the limit, the longest unused ones first."""
    sizes = {f: sum(p.stat().st_size for p in f.iterdir()) for f in root.iterdir() if f.is_dir()}
    removable = sorted((f for f in sizes if f.name not in keep), key=lambda f: f.stat().st_mtime)
    while removable and sum(sizes.values()) + needed > limit:
        shutil.rmtree(removable[0])
        del sizes[removable.pop(0)]
    if needed > (free := shutil.disk_usage(root).free):
        raise UserError(
            f"cache_hidden_states would write {needed:,} bytes, and {root} has {free:,} left: give "
            "data.cache_dir a larger disk, or set cache_hidden_states to false"
        )


def _make(
    folder: Path,
    run: Callable[[Batch], Tensor],
    source: TokenRows,
    form: Mapping[str, Any],
    flat: bool,
) -> None:
    """Write the cache beside its place and rename it, so that it is there whole or not at all."""
    rows, start = np.empty(len(source), ROWS), 0
    with atomic_folder(folder) as temporary:
        with (temporary / "states.bin").open("wb") as out:
            with Progress("filling the cache of frozen layers", len(source), "rows") as progress:
                for number, ids, values in _computed(run, source, flat):
                    rows[number] = _digest(ids), start, len(ids), zlib.crc32(values.data)
                    out.write(values.data)
                    start += len(ids)
                    progress.update(number + 1)
            size = out.tell()
        np.save(temporary / "rows.npy", rows[np.argsort(rows["digest"], kind="stable")])
        meta = {**form, "rows": len(rows), "bytes": size}
        (temporary / "meta.json").write_text(json.dumps(meta))


def _computed(
    run: Callable[[Batch], Tensor], source: TokenRows, flat: bool
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yield each row's number, tokens, and states as bytes."""
    ends = np.cumsum(source.lengths)
    groups = ends // TOKENS_AT_ONCE if flat else np.arange(len(source))
    for _, group in itertools.groupby(range(len(source)), key=lambda i: groups[i]):
        numbers = list(group)
        ids = [source[i]["input_ids"] for i in numbers]
        states = run(batch_of(ids, flat))[0].cpu()
        for i, row, part in zip(numbers, ids, states.split([len(r) for r in ids]), strict=True):
            yield i, row, part.contiguous().view(torch.uint8).numpy().reshape(-1)


def batch_of(rows: Sequence[NDArray[np.int64]], flat: bool) -> Batch:
    """Return rows of token ids as a batch without labels: flat, or the only row as it is."""
    ids = torch.from_numpy(np.concatenate(rows))[None]
    if not flat:
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    lengths = [len(row) for row in rows]
    return {
        "input_ids": ids,
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "seq_lens": lengths,
    }


def _digest(ids: NDArray[np.int64]) -> bytes:
    digest = hashlib.blake2b(np.ascontiguousarray(ids, "<i8").data, digest_size=16).digest()
    return digest[:-1] + bytes([digest[-1] | 1])  # numpy drops zeros at the end


def _name(facts: Mapping[str, Any]) -> str:
    return sha256_of_json(facts)[:32]
