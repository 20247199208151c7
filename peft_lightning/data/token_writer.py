"""The files of a token cache, written as rows are tokenized."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from peft_lightning.data.npy import NpyWriter
from peft_lightning.data.tokenized_dataset import FILES, row_checksum
from peft_lightning.data.tokens.tokenization import TokenizedRow
from peft_lightning.messages import UserError


class TokenWriter:
    """Writes the files that ``TokenizedDataset`` reads, but for ``meta.json``.

    Args:
        folder: The folder, which exists.
    """

    def __init__(self, folder: Path) -> None:
        self._files = {name: NpyWriter(folder / f"{name}.npy", t) for name, t in FILES.items()}
        self._files["offsets"].append(np.zeros(1))

    @property
    def num_tokens(self) -> int:
        """The number of tokens so far."""
        return self._files["input_ids"].length

    def append(self, rows: Sequence[TokenizedRow], records: Sequence[int]) -> None:
        """Write sequences of tokens.

        Args:
            rows: The sequences.
            records: The index of the record that each is made of.

        Raises:
            UserError: If a weight is not finite and at least 0.
        """
        if not rows:
            return
        ids, weights = [row.input_ids for row in rows], [row.loss_weights for row in rows]
        start, all_weights = self.num_tokens, np.concatenate(weights)
        if not (np.isfinite(all_weights) & (all_weights >= 0)).all():
            raise UserError(
                f"a weight in the loss of records {records[0] + 1} to {records[-1] + 1} is not"
                " finite and at least 0"
            )
        columns = {
            "input_ids": np.concatenate(ids),
            "loss_weights": all_weights,
            "offsets": start + np.cumsum([len(i) for i in ids]),
            "num_loss_tokens": np.array([np.count_nonzero(w) for w in weights]),
            "records": np.array(records),
            "row_checksums": np.array(list(map(row_checksum, ids, weights))),
        }
        for name, values in columns.items():
            self._files[name].append(values)

    def close(self) -> dict[str, int]:
        """Sync the files and return their sizes in bytes."""
        return {name: file.close() for name, file in self._files.items()}
