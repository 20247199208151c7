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
    "loss_mask": np.dtype("u1"),
    "offsets": np.dtype("<i8"),
    "num_loss_tokens": np.dtype("<i4"),
}


class TokenizedDataset(Dataset[dict[str, NDArray[np.int64]]]):
    """The tokenized rows of one source; a row is read from disk when it is indexed.

    Args:
        folder: Contains ``input_ids.npy`` and ``loss_mask.npy``, (tokens of all rows,) each;
            ``offsets.npy``, (rows + 1,); ``num_loss_tokens.npy``, (rows,); and ``meta.json``.

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
        if not self._input_ids.length == self._loss_mask.length == tokens == self.meta["tokens"]:
            raise UserError(f"{folder}: not a complete token cache (its files differ in length)")

    def _open(self) -> None:
        sizes = {name: (self.folder / f"{name}.npy").stat().st_size for name in FILES}
        if sizes != self.meta["sizes"]:
            raise UserError(f"sizes {sizes}, expected {self.meta['sizes']}")
        self._input_ids, self._loss_mask = (
            NpyReader(self.folder / f"{name}.npy") for name in ("input_ids", "loss_mask")
        )
        self._offsets, self._num_loss_tokens = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r")
            for name in ("offsets", "num_loss_tokens")
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "meta": self.meta}  # a worker opens the files itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> dict[str, NDArray[np.int64]]:
        """Return ``input_ids`` and ``labels`` of a row, (n,) each; the label -100 is ignored."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        input_ids = self._input_ids.read(start, end).astype(np.int64)
        return {
            "input_ids": input_ids,
            "labels": np.where(self._loss_mask.read(start, end), input_ids, -100),
        }

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each row, (rows,)."""
        return np.diff(self._offsets)

    @property
    def num_loss_tokens(self) -> NDArray[np.int64]:
        """Number of tokens in the loss of each row, (rows,)."""
        return self._num_loss_tokens.astype(np.int64)
