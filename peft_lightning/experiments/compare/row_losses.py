"""The loss of each row: sums over the rows of flat batches, in the loss that is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.data.tokens.tokenizer import padding_id
from peft_lightning.experiments.compare.validation_rows import IGNORED, ValidationRows
from peft_lightning.loss import CausalLMLoss

MAX_TOKENS = 4096  # of a batch
MAX_LOGITS = 2**25  # numbers that exist at once: 128 MiB in float32


@dataclass(frozen=True)
class RowLosses:
    """What a model makes of each row; sums are weighted by the weights of the tokens.

    Args:
        nll: (rows,) Summed loss in nats.
        tokens: (rows,) Labelled tokens, or the sum of their weights.
        correct: (rows,) Of them, those that were the most probable ones.
    """

    nll: NDArray[np.float64]
    tokens: NDArray[np.float64]
    correct: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The loss per token in nats: ``val/loss`` of these rows."""
        return float(self.nll.sum() / self.tokens.sum())


def row_losses(
    loss: CausalLMLoss,
    rows: ValidationRows,
    precision: str | None = None,
    on_row: Callable[[int], None] | None = None,
) -> RowLosses:
    """Evaluate a model on rows.

    Args:
        loss: Computes the logits at labelled tokens, as in training.
        rows: The rows.
        precision: Lightning's name of the precision; products of a mixed one are autocast, as in
            a run. None or a true one for the model's own.
        on_row: Called with the sequences that are done.
    """
    sums = np.zeros((3, len(rows)))
    done, device = 0, loss.model.device
    vocabulary = int(loss.model.get_input_embeddings().weight.shape[0])
    for picked in _batches(rows, max(1, MAX_LOGITS // vocabulary)):
        sequences = [rows.sequences[i] for i in picked]
        if rows.layout == "padded":
            batch = padded_collate(sequences, padding_id(rows.tokenizer))
        else:
            batch = flat_collate(sequences)
        batch.pop("loss_weights", None)
        batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in batch.items()}
        with torch.no_grad(), _autocast(precision, device.type):
            logits, targets = loss.logits(batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
        hits = (logits.argmax(-1) == targets).double().cpu().numpy()
        labelled = [s["labels"] != IGNORED for s in sequences]
        weights = np.concatenate(
            [s["loss_weights"][m].astype(float) for s, m in zip(sequences, labelled, strict=True)]
        )
        of_token = np.repeat(rows.rows[picked], [m.sum() for m in labelled])
        for total, values in zip(sums, (losses, np.ones_like(losses), hits), strict=True):
            np.add.at(total, of_token, values * weights)
        done += len(picked)
        if on_row is not None:
            on_row(done)
    return RowLosses(*sums)


def _batches(rows: ValidationRows, most_labelled: int) -> Iterator[list[int]]:
    """Yield the indices of sequences, short ones first, within the limits of a batch."""
    lengths = [len(s["input_ids"]) for s in rows.sequences]
    labelled = [int((s["labels"] != IGNORED).sum()) for s in rows.sequences]
    picked: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        tokens = sum(lengths[j] for j in picked) + lengths[i]
        if rows.layout == "padded":
            tokens = lengths[i] * (len(picked) + 1)
        too_many = sum(labelled[j] for j in picked) + labelled[i] > most_labelled
        if picked and (tokens > MAX_TOKENS or too_many):
            yield picked
            picked = []
        picked.append(i)
    if picked:
        yield picked


def _autocast(precision: str | None, device: str) -> AbstractContextManager[object]:
    if precision is None or not precision.endswith("-mixed"):
        return nullcontext()
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    return torch.autocast(device, dtype)
