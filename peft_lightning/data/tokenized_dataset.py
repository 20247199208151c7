"""The tokenized rows of one source, on disk."""

import contextlib
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from peft_lightning.data.npy import NpyReader
from peft_lightning.files import SUMS_FILE, read_checksums, sha256_of_file
from peft_lightning.messages import RunError, UserError

FILES: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype("<i4"),
    "loss_weights": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
    "num_loss_tokens": np.dtype("<i4"),
    "records": np.dtype("<i8"),
    "row_checksums": np.dtype("<u4"),
}
_OF_TOKENS = ("input_ids", "loss_weights")  # the large files
# bytes of these two that are checked before anything is trained on them: SHA-256 of a processor
# with instructions for it reads 1.4 GB/s. Of larger ones each row is checked when it is read.
CHECKED_AT_START = 2**30


class TokenizedDataset(Dataset[dict[str, NDArray[Any]]]):
    """The tokenized rows of one source; a row is read from disk when it is indexed.

    Args:
        folder: Contains ``input_ids.npy`` and ``loss_weights.npy``, (tokens of all rows,) each;
            ``offsets.npy``, (rows + 1,); ``num_loss_tokens.npy``, ``records.npy`` and
            ``row_checksums.npy``, (rows,); ``meta.json``; and ``SHA256SUMS`` of all of them.

    Attributes:
        tokens_hash: Hash of the token ids and the weights of all rows.
        records: (rows,) The index of the record that each row is made of. A conversation becomes
            several rows if its template prints earlier turns differently from how they are
            generated.

    Raises:
        UserError: If a file is missing, damaged, or of another folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            sums = self._checked()
            self.meta = json.loads((folder / "meta.json").read_text())
            self._open()
            if self.meta["name"] != folder.name:
                raise UserError(f"it was written as {self.meta['name']}")
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{folder}: not a complete token cache ({error})") from error
        tokens = int(self._offsets[-1])
        if not self._input_ids.length == self._loss_weights.length == tokens == self.meta["tokens"]:
            raise UserError(f"{folder}: not a complete token cache (its files differ in length)")
        digests = "".join(sums[f"{name}.npy"] for name in (*_OF_TOKENS, "offsets"))
        self.tokens_hash = hashlib.sha256(digests.encode()).hexdigest()

    def _checked(self) -> dict[str, str]:
        """Return the checksums of the files, after comparing those that do not take long."""
        sums = read_checksums(self.folder)
        names = ["meta.json", *(f"{name}.npy" for name in FILES if name not in _OF_TOKENS)]
        large = [f"{name}.npy" for name in _OF_TOKENS]
        if sum((self.folder / name).stat().st_size for name in large) <= CHECKED_AT_START:
            names += large
        for name in names:
            if sha256_of_file(self.folder / name) != sums.get(name):
                raise UserError(f"{name} is not what was written")
        return sums

    def _open(self) -> None:
        sizes = {name: (self.folder / f"{name}.npy").stat().st_size for name in FILES}
        if sizes != self.meta["sizes"]:
            raise UserError(f"sizes {sizes}, expected {self.meta['sizes']}")
        self._input_ids, self._loss_weights = (
            NpyReader(self.folder / f"{name}.npy") for name in _OF_TOKENS
        )
        self._offsets, self._num_loss_tokens, self._row_checksums = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r")
            for name in ("offsets", "num_loss_tokens", "row_checksums")
        )
        self.records: NDArray[np.int64] = np.load(self.folder / "records.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        # a worker opens the files itself
        return {"folder": self.folder, "meta": self.meta, "tokens_hash": self.tokens_hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        """Return ``input_ids``, ``labels`` and ``loss_weights`` of a row, (n,) each.

        The label is -100 where the weight is 0.

        Raises:
            RunError: If what was written has changed on the disk. The cache is then incomplete, so
                the next run makes it anew.
        """
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        stored, weights = self._input_ids.read(start, end), self._loss_weights.read(start, end)
        if row_checksum(stored, weights) != self._row_checksums[index]:
            with contextlib.suppress(OSError):
                (self.folder / SUMS_FILE).unlink()
            raise RunError(
                f"{self.folder} is damaged: the tokens of its row {index} are not what was written."
                " The next run makes them anew, and can resume from the last checkpoint"
            )
        input_ids = stored.astype(np.int64)
        return {
            "input_ids": input_ids,
            "labels": np.where(weights, input_ids, -100),
            "loss_weights": weights,
        }

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each row, (rows,)."""
        return np.diff(self._offsets)

    @property
    def num_loss_tokens(self) -> NDArray[np.int64]:
        """Number of tokens in the loss of each row, (rows,)."""
        return self._num_loss_tokens.astype(np.int64)


def row_checksum(input_ids: NDArray[np.int32], loss_weights: NDArray[np.float32]) -> int:
    """Return the checksum (CRC-32) of a row, whose arrays are contiguous."""
    return zlib.crc32(loss_weights.data, zlib.crc32(input_ids.data))
