"""The tokenized rows of one source, on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from peft_lightning.data.npy import NpyReader
from peft_lightning.messages import UserError

FILES: dict[str, np.dtype[Any]] = {
    "input_ids": np.dtype("<i4"),
    "loss_weights": np.dtype("<f4"),
    "offsets": np.dtype("<i8"),
    "num_loss_tokens": np.dtype("<i4"),
    "records": np.dtype("<i8"),
}


class TokenizedDataset(Dataset[dict[str, NDArray[Any]]]):
    """The tokenized rows of one source; a row is read from disk when it is indexed.

    Args:
        folder: Contains ``input_ids.npy`` and ``loss_weights.npy``, (tokens of all rows,) each;
            ``offsets.npy``, (rows + 1,); ``num_loss_tokens.npy`` and ``records.npy``, (rows,); and
            ``meta.json``.

    Attributes:
        records: (rows,) The index of the record that each row is made of. A conversation becomes
            several rows if its template prints earlier turns differently from how they are
            generated.

    Raises:
        UserError: If a file is missing, damaged, or inconsistent with ``meta.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.meta = json.loads((folder / "meta.json").read_text())
            self._open()
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{folder}: not a complete token cache ({error})") from error
        tokens = int(self._offsets[-1])
        if not self._input_ids.length == self._loss_weights.length == tokens == self.meta["tokens"]:
            raise UserError(f"{folder}: not a complete token cache (its files differ in length)")

    def _open(self) -> None:
        sizes = {name: (self.folder / f"{name}.npy").stat().st_size for name in FILES}
        if sizes != self.meta["sizes"]:
            raise UserError(f"sizes {sizes}, expected {self.meta['sizes']}")
        self._input_ids, self._loss_weights = (
            NpyReader(self.folder / f"{name}.npy") for name in ("input_ids", "loss_weights")
        )
        self._offsets, self._num_loss_tokens = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r")
            for name in ("offsets", "num_loss_tokens")
        )
        self.records: NDArray[np.int64] = np.load(self.folder / "records.npy", mmap_mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a worker opens the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[Any]]:
        """Return ``input_ids``, ``labels`` and ``loss_weights`` of a row, (n,) each.

        The label is -100 where the weight is 0.
        """
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        input_ids = self._input_ids.read(start, end).astype(np.int64)
        weights = self._loss_weights.read(start, end)
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
