"""Which rows form which batch in which epoch: a function of the seed and the epoch."""

import bisect
import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from peft_lightning.messages import UserError

RowIndices = NDArray[np.int64]

NO_ROWS: RowIndices = np.empty(0, dtype=np.int64)

# The number of batches is that of a few epochs where these are filled within about 0.2 s; of more
# rows one epoch is enough, because their number of batches varies by far less than 0.5 %.
EPOCHS_TO_FILL, FEW_ROWS = 4, 50_000


@dataclass(frozen=True)
class WeightedSource:
    """The rows of one source, and how often each of them occurs in an epoch.

    A record of a file may have become several rows of tokens; an epoch has all of them or none.

    Args:
        rows: (rows,) Their indices in the dataset, in increasing order.
        weight: Occurrences of each record per epoch, above 0: 2 means twice, 0.5 means a different
            half of the records in each epoch.
        records: (all rows of the dataset,) Number of the record that each row is made of, not
            decreasing; None if each row is a record.
    """

    rows: RowIndices
    weight: float = 1.0
    records: NDArray[np.int64] | None = None

    @functools.cached_property
    def counts(self) -> NDArray[np.int64]:
        """The number of rows of each record, (records,)."""
        if self.records is None:
            return np.ones(len(self.rows), dtype=np.int64)
        return np.unique(self.records[self.rows], return_counts=True)[1].astype(np.int64)

    @property
    def num_records(self) -> int:
        """Number of records."""
        return len(self.counts)

    @property
    def records_per_epoch(self) -> int:
        """Number of records in each epoch, at least one."""
        return max(1, round(self.weight * self.num_records))

    @property
    def varies(self) -> bool:
        """Whether epochs differ in their records."""
        return self.records_per_epoch % self.num_records > 0

    def most_rows(self, seed: int) -> int:
        """Return the number of rows of the epoch that has most of all."""
        repeats, extra = divmod(self.records_per_epoch, self.num_records)
        shuffled = self.counts[self._order(seed)]
        ends = np.cumsum(np.concatenate([[0], shuffled, shuffled[:extra]]))
        turns = ends[extra:] - ends[: len(ends) - extra]
        return int(repeats * self.counts.sum() + turns.max())

    def rows_of_epoch(self, seed: int, epoch: int) -> RowIndices:
        """Return the rows of an epoch; fractions of the records in turn from a shuffle."""
        repeats, extra = divmod(self.records_per_epoch, self.num_records)
        places = np.arange(epoch * extra, (epoch + 1) * extra)
        is_taken = np.zeros(self.num_records, dtype=bool)
        is_taken[np.take(self._order(seed), places, mode="wrap")] = True
        turn = self.rows[np.repeat(is_taken, self.counts)]
        return np.concatenate([np.tile(self.rows, repeats), turn])

    def _order(self, seed: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed, self.num_records)).permutation(self.num_records)


class BatchPlan:
    """The batches of each epoch: a function of the seed and the epoch, the same on every rank.

    Every row of the epoch is in exactly one batch. Every epoch has the same number of batches,
    because Lightning asks for it once; it is a multiple of ``world_size``, and rank r of w takes
    the batches r, r + w, ... With ``batch_size``, one step of all ranks together has
    ``batch_size * world_size`` rows, whatever their split. With ``tokens_per_batch``, shuffled rows
    fill one batch after the other. The number of batches then varies slightly between epochs:
    there are 0.5 % more than the first few epochs need, and the largest are halved until that
    number is reached. An epoch that needs still more is packed tighter, the longest rows first;
    if even that needs more (very rare), it uses the batches of the first epoch in another order.
    Batches are empty where there are too few rows.

    The order of an epoch's rows depends on neither ``batch_size`` nor ``world_size``, so an epoch
    can be resumed with other values of them: see ``resume_at``.

    Args:
        lengths: (rows,) Number of tokens of each row.
        sources: The rows of an epoch.
        batch_size: Rows per batch, unless ``tokens_per_batch`` is given.
        tokens_per_batch: Maximum number of tokens per batch, padding included; at least the length
            of the longest row.
        padded: Whether rows are padded to the longest of their batch.
        shuffle: Whether rows are in random order, a different one in each epoch.
        seed: Seed of that order.
        world_size: Number of ranks.

    Raises:
        UserError: If ``batch_size`` is below 1, or a row is longer than ``tokens_per_batch``.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        sources: Sequence[WeightedSource],
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        padded: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        if tokens_per_batch is not None and lengths.max() > tokens_per_batch:
            raise UserError(
                f"tokens_per_batch is {tokens_per_batch}, but the longest row has {lengths.max()}"
                f" tokens; raise it, or set max_length to {tokens_per_batch} or less"
            )
        self.lengths, self.sources = lengths, sources
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.padded, self.shuffle, self.seed, self.world_size = padded, shuffle, seed, world_size
        self.resumed = (0, 0)  # an epoch, and the number of its rows that are skipped
        if tokens_per_batch is None:
            steps = math.ceil(sum(s.most_rows(seed) for s in sources) / (batch_size * world_size))
            self._max_filled = steps * world_size
        else:
            varies = shuffle or any(s.varies for s in sources)
            epochs = range(EPOCHS_TO_FILL if varies and len(lengths) <= FEW_ROWS else 1)
            self._max_filled = max(len(self._fill(self._rows(epoch))) for epoch in epochs)
            self._max_filled += int(0.005 * self._max_filled) if varies else 0
        self._length = math.ceil(self._max_filled / world_size) * world_size

    def __len__(self) -> int:
        """Return the number of batches per epoch, over all ranks."""
        return self._length

    def summary(self, batches_per_step: int = 1) -> str:
        """Return the size of an epoch and of an optimizer step, and how full batches are.

        Args:
            batches_per_step: Batches of each rank in an optimizer step, as in
                ``accumulate_grad_batches``.
        """
        rows, step = self._rows(0), batches_per_step * self.world_size
        records = sum(source.records_per_epoch for source in self.sources)
        sequences = f" ({len(rows):,} sequences)" if len(rows) != records else ""
        tokens = int(self.lengths[rows].sum())
        mean = tokens / len(self)
        parts = f" ({step} batches of {mean:,.0f})" if step > 1 else ""
        unit = "sequences" if sequences else "rows"
        filled = f"data.batch_size is {self.batch_size} {unit}; data.tokens_per_batch fills instead"
        if self.tokens_per_batch is not None:
            share = mean / self.tokens_per_batch
            filled = f"data.tokens_per_batch {self.tokens_per_batch:,} is filled to {share:.0%}"
        padding = ", padding not counted" if self.padded else ""
        return (
            f"an epoch: {records:,} rows{sequences}, {tokens:,} tokens,"
            f" {math.ceil(len(self) / step):,} steps of {step * mean:,.0f} tokens on average"
            f"{parts}{padding}; {filled}"
        )

    def batches(self, epoch: int) -> list[RowIndices]:
        """Return the row indices of each batch of an epoch; ``resume_at`` makes the first empty."""
        skipped = self._skipped_rows(epoch)
        if self.tokens_per_batch is None:
            size = self.batch_size * self.world_size
            rows = self._rows(epoch)[skipped:]
            steps = [rows[i : i + size] for i in range(0, len(rows), size)]
            batches = [part for step in steps for part in np.array_split(step, self.world_size)]
            if not skipped and len(batches) < self._length:  # other epochs have more rows
                batches = halve_largest(batches, self._length)
        else:
            batches, number = self._batches_within_budget(epoch), self._length
            if skipped:
                batches = self._fill(np.concatenate(batches)[skipped:])
                number = math.ceil(len(batches) / self.world_size) * self.world_size
            batches = halve_largest(batches, number)
        return [NO_ROWS] * (self._length - len(batches)) + batches

    def rows_before(self, epoch: int, position: int) -> int:
        """Return the number of rows of an epoch before batch ``position`` of every rank."""
        batches = self.batches(epoch)[: position * self.world_size]
        return self._skipped_rows(epoch) + sum(map(len, batches))

    def resume_at(self, epoch: int, rows: int) -> int:
        """Skip the first ``rows`` rows of ``epoch``, whichever batches they were in.

        Returns:
            The position, on each rank, of the first batch with rows. The remaining rows are in the
            last batches of the epoch, as many as they need.
        """
        self.resumed = (epoch, rows)
        remaining = (i for i, batch in enumerate(self.batches(epoch)) if len(batch))
        return next(remaining, self._length) // self.world_size

    def with_batching(self, batch_size: int, world_size: int) -> "BatchPlan":
        """Return a plan over the same rows in the same order with other batches."""
        options = (self.tokens_per_batch, self.padded, self.shuffle, self.seed, world_size)
        return BatchPlan(self.lengths, self.sources, batch_size, *options)

    def with_sources(self, sources: Sequence[WeightedSource]) -> "BatchPlan":
        """Return a plan over the rows of other sources with the same options."""
        options = (self.padded, self.shuffle, self.seed, self.world_size)
        return BatchPlan(self.lengths, sources, self.batch_size, self.tokens_per_batch, *options)

    def _skipped_rows(self, epoch: int) -> int:
        return self.resumed[1] if epoch == self.resumed[0] else 0

    def batches_of_rank(self, epoch: int, rank: int) -> list[RowIndices]:
        """Return the row indices of the batches of one rank in an epoch."""
        return self.batches(epoch)[rank :: self.world_size]

    def _rows(self, epoch: int) -> RowIndices:
        rows = np.concatenate([s.rows_of_epoch(self.seed, epoch) for s in self.sources])
        return np.random.default_rng((self.seed, epoch)).permutation(rows) if self.shuffle else rows

    def _batches_within_budget(self, epoch: int) -> list[RowIndices]:
        """Return batches within the token budget, before they are brought to the epoch's number."""
        rows = self._rows(epoch)
        batches = self._fill(rows)
        if len(batches) <= self._max_filled:
            return batches
        batches = self._fill_tightly(rows)
        if len(batches) > self._max_filled:
            batches = self._fill(self._rows(0))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(batches))
        return [batches[i] for i in order]

    def _fill_tightly(self, rows: RowIndices) -> list[RowIndices]:
        """Put each row, the longest first, into the fullest batch that has room for it."""
        assert self.tokens_per_batch is not None
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        if self.padded:  # a batch takes as many rows as its longest, the first, allows
            return self._fill(rows)
        batches: list[list[int]] = []
        rooms: list[tuple[int, int]] = []  # tokens that are left in a batch, and its number
        for row, length in zip(rows.tolist(), self.lengths[rows].tolist(), strict=True):
            if (i := bisect.bisect(rooms, (length, -1))) < len(rooms):
                room, batch = rooms.pop(i)
            else:
                room, batch = self.tokens_per_batch, len(batches)
                batches.append([])
            batches[batch].append(row)
            bisect.insort(rooms, (room - length, batch))
        return [np.array(batch) for batch in batches]

    def _fill(self, rows: RowIndices) -> list[RowIndices]:
        """Start a new batch at each row that does not fit into the current one."""
        assert self.tokens_per_batch is not None
        cuts, count, tokens, longest = [], 0, 0, 0
        for i, length in enumerate(self.lengths[rows].tolist()):
            count, tokens, longest = count + 1, tokens + length, max(longest, length)
            if (count * longest if self.padded else tokens) > self.tokens_per_batch:
                cuts.append(i)
                count, tokens, longest = 1, length, length
        return np.split(rows, cuts)


def halve_largest(batches: list[RowIndices], number: int) -> list[RowIndices]:
    """Halve the largest batches until there are ``number``, or add empty ones; keeps the order."""
    heap: list[tuple[int, tuple[int, ...], RowIndices]] = [
        (-len(batch), (i,), batch) for i, batch in enumerate(batches)
    ]
    heapq.heapify(heap)
    while len(heap) < number and heap[0][0] < -1:
        _, position, batch = heapq.heappop(heap)
        half = len(batch) // 2
        heapq.heappush(heap, (-half, (*position, 0), batch[:half]))
        heapq.heappush(heap, (half - len(batch), (*position, 1), batch[half:]))
    ordered = [batch for _, _, batch in sorted(heap, key=lambda entry: entry[1])]
    return ordered + [NO_ROWS] * (number - len(ordered))
