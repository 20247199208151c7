"""Which rows form which batch in which epoch, and how rows become tensors."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Batch = dict[str, Any]

NO_ROWS: Rows = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class WeightedSource:
    """The rows of one source, and how often an epoch shows each of them.

    Args:
        rows: Their indices.
        weight: 1 is once, 2 is twice, 0.5 a different half each epoch; above 0.
    """

    rows: Rows
    weight: float = 1.0

    def of_epoch(self, seed: int, epoch: int) -> Rows:
        """Return the rows of an epoch; as many in each, and fractions go round the rows."""
        times, fraction = divmod(self.weight, 1)
        some = round(fraction * len(self.rows))
        if not times:
            some = max(1, some)
        shuffled = np.random.default_rng((seed, len(self.rows))).permutation(self.rows)
        turn = np.take(shuffled, np.arange(epoch * some, (epoch + 1) * some), mode="wrap")
        return np.concatenate([np.tile(self.rows, int(times)), np.sort(turn)])


class BatchPlan:
    """The batches of each epoch: a function of the seed and the epoch, the same on every rank.

    Every row of the epoch is in exactly one batch, and every epoch has the same number of batches
    (Lightning asks once), a multiple of ``world_size``: rank r of w takes batches r, r + w, ...
    With ``batch_size``, one step of all ranks is ``batch_size * world_size`` rows, whatever their
    split. With ``tokens_per_batch``, shuffled rows fill one batch after the other; as their number
    varies a little between epochs, there are 2 % + 1 more than the first epoch needs, and the
    largest are halved until there are as many. An epoch that needs still more (rare) takes the
    first one's batches in another order. Where rows are too few, batches are empty.

    The order of an epoch's rows depends on neither ``batch_size`` nor ``world_size``, so that an
    epoch can go on with others of them: see ``resume_at``.

    Args:
        lengths: (rows,) tokens of each row.
        shares: The rows that an epoch is made of.
        batch_size: Rows in a batch, unless there is a token budget.
        tokens_per_batch: Most tokens in a batch, padding included; not below the longest row.
        padded: Whether rows are padded to the longest of their batch.
        shuffle: Whether rows are in random order, another in each epoch.
        seed: Decides the order.
        world_size: Number of ranks.

    Raises:
        ValueError: For a size below 1, or a row that no batch can hold.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        shares: Sequence[WeightedSource],
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        padded: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if tokens_per_batch is not None and lengths.max() > tokens_per_batch:
            raise ValueError(
                f"tokens_per_batch is {tokens_per_batch}, but the longest row has {lengths.max()}"
                f" tokens; raise it, or set max_length to {tokens_per_batch} or less"
            )
        self.lengths, self.shares = lengths, shares
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.padded, self.shuffle, self.seed, self.world_size = padded, shuffle, seed, world_size
        self.finished = (0, 0)  # an epoch, and how many of its rows were in other batches
        if tokens_per_batch is None:
            self._most = math.ceil(len(self._rows(0)) / (batch_size * world_size)) * world_size
        else:
            self._most = len(self._fill(self._rows(0)))
            if shuffle or any(share.weight % 1 for share in shares):
                self._most = math.ceil(1.02 * self._most) + 1
        self._length = math.ceil(self._most / world_size) * world_size

    def __len__(self) -> int:
        """Return the number of batches in an epoch, those of all ranks together."""
        return self._length

    def batches(self, epoch: int) -> list[Rows]:
        """Return all batches of an epoch, as row indices; empty for what ``resume_at`` skips."""
        finished = self._rows_of_others(epoch)
        if self.tokens_per_batch is None:
            size = self.batch_size * self.world_size
            rows = self._rows(epoch)[finished:]
            steps = [rows[i : i + size] for i in range(0, len(rows), size)]
            batches = [part for step in steps for part in np.array_split(step, self.world_size)]
        else:
            batches, number = self._filled(epoch), self._length
            if finished:
                batches = self._fill(np.concatenate(batches)[finished:])
                number = math.ceil(len(batches) / self.world_size) * self.world_size
            batches = halve_largest(batches, number)
        return [NO_ROWS] * (self._length - len(batches)) + batches

    def rows_before(self, epoch: int, position: int) -> int:
        """Return the number of an epoch's rows before batch ``position`` of each rank."""
        batches = self.batches(epoch)[: position * self.world_size]
        return self._rows_of_others(epoch) + sum(map(len, batches))

    def resume_at(self, epoch: int, rows: int) -> int:
        """Let ``epoch`` go on behind its first ``rows`` rows, whichever batches they were in.

        Returns:
            The position of the first batch that is left. Behind it there are as many batches as
            the rows need that are left, so the first ones may be fewer than those rows would fill.
        """
        self.finished = (epoch, rows)
        left = (i for i, batch in enumerate(self.batches(epoch)) if len(batch))
        return next(left, self._length) // self.world_size

    def _rows_of_others(self, epoch: int) -> int:
        return self.finished[1] if epoch == self.finished[0] else 0

    def of_rank(self, epoch: int, rank: int) -> list[Rows]:
        """Return the batches of one rank in an epoch."""
        return self.batches(epoch)[rank :: self.world_size]

    def _rows(self, epoch: int) -> Rows:
        rows = np.concatenate([share.of_epoch(self.seed, epoch) for share in self.shares])
        return np.random.default_rng((self.seed, epoch)).permutation(rows) if self.shuffle else rows

    def _filled(self, epoch: int) -> list[Rows]:
        """Return batches within the token budget: not yet as many as an epoch has."""
        batches = self._fill(self._rows(epoch))
        if len(batches) <= self._most:
            return batches
        batches = self._fill(self._rows(0))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(batches))
        return [batches[i] for i in order]

    def _fill(self, rows: Rows) -> list[Rows]:
        """Cut ``rows`` where the next one would not fit in the batch any more."""
        assert self.tokens_per_batch is not None
        cuts, count, tokens, longest = [], 0, 0, 0
        for i, length in enumerate(self.lengths[rows].tolist()):
            count, tokens, longest = count + 1, tokens + length, max(longest, length)
            if (count * longest if self.padded else tokens) > self.tokens_per_batch:
                cuts.append(i)
                count, tokens, longest = 1, length, length
        return np.split(rows, cuts)


def halve_largest(batches: list[Rows], number: int) -> list[Rows]:
    """Halve the batches of most rows in place until there are ``number``; then add empty ones."""
    heap: list[tuple[int, tuple[int, ...], Rows]] = [
        (-len(batch), (i,), batch) for i, batch in enumerate(batches)
    ]
    heapq.heapify(heap)
    while len(heap) < number and heap[0][0] < -1:
        _, place, batch = heapq.heappop(heap)
        half = len(batch) // 2
        heapq.heappush(heap, (-half, (*place, 0), batch[:half]))
        heapq.heappush(heap, (half - len(batch), (*place, 1), batch[half:]))
    ordered = [batch for _, _, batch in sorted(heap, key=lambda entry: entry[1])]
    return ordered + [NO_ROWS] * (number - len(ordered))


# A batch without rows is one token that is not in the loss: its rank stays in step with the others.
NO_ROW = {"input_ids": np.zeros(1, dtype=np.int64), "labels": np.full(1, -100)}


def flat_collate(rows: Sequence[Batch]) -> Batch:
    """Lay rows end to end, without padding.

    Returns:
        ``input_ids``, ``labels``, ``position_ids`` (1, T) int64; ``cu_seq_lens`` (S + 1,) int32,
        where the S rows start and the last ends; ``seq_lens``, their lengths as Python ints.
    """
    rows = rows or [NO_ROW]
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.from_numpy(np.concatenate([row["input_ids"] for row in rows]))[None],
        "labels": torch.from_numpy(np.concatenate([row["labels"] for row in rows]))[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens": torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        "seq_lens": lengths,
    }


def padded_collate(rows: Sequence[Batch], pad_id: int) -> Batch:
    """Pad rows on the right.

    Returns:
        ``input_ids``, ``labels``, ``attention_mask``: (B, T) int64, 1 where there is a token.
    """
    rows = rows or [NO_ROW]
    shape = len(rows), max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.full(shape, pad_id),
        "labels": torch.full(shape, -100),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
    }
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        batch["input_ids"][i, :n] = torch.from_numpy(row["input_ids"])
        batch["labels"][i, :n] = torch.from_numpy(row["labels"])
        batch["attention_mask"][i, :n] = 1
    return batch


def prompt_collate(rows: Sequence[tuple[int, list[int], str | None]], pad_id: int) -> Batch:
    """Pad (index, token ids, adapter) of prompts on the left, for generation by one adapter.

    Returns:
        ``input_ids``, ``attention_mask``: (B, T) int64; ``index``: the rows' indices;
        ``adapter``: its name.
    """
    shape = len(rows), max(len(ids) for _, ids, _ in rows)
    batch: Batch = {
        "input_ids": torch.full(shape, pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "index": [index for index, _, _ in rows],
        "adapter": rows[0][2],
    }
    for i, (_, ids, _) in enumerate(rows):
        batch["input_ids"][i, shape[1] - len(ids) :] = torch.tensor(ids)
        batch["attention_mask"][i, shape[1] - len(ids) :] = 1
    return batch
