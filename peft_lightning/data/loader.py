"""A data loader that knows its position in the epoch and can be resumed at any batch."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from peft_lightning.data.batching import RowIndices
from peft_lightning.data.collate import Batch
from peft_lightning.messages import RunError


class _BatchSampler(Sampler[list[int]]):
    """Yields the row indices of each batch as a list, lazily: those of a whole epoch are large."""

    def __init__(self, batches: list[RowIndices]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return map(np.ndarray.tolist, self._batches)


class BatchLoader:
    """Iterates over the batches of an epoch, from the first or from the position of a checkpoint.

    It is not a ``DataLoader``, so that Lightning neither wraps nor re-creates it. The order is
    computed at the first batch, after Lightning has called ``set_epoch``, which it does after
    ``iter`` in a resumed run. Random numbers come from a private generator, which leaves the global
    ones to the model. Workers only copy token ids and have no state to save.

    Args:
        dataset: Returns a row by its index.
        batches: Returns the row indices of each batch of an epoch.
        length: Number of batches, the same for each epoch.
        collate: Makes a batch from rows.
        num_workers: Number of processes that read ahead; 0 reads in this process.
        source_names: The name of the source of each batch, which is added to it as ``source``;
            empty if batches mix sources.
        source_of: Returns the name of the source of a row; the names of the rows of a batch are
            added to it as ``sources``. None if nobody asks.

    Attributes:
        epoch: The epoch that is iterated over.
        position: Number of batches of ``epoch`` that were yielded, or skipped by ``resume``.
        before_epoch: Called by ``set_epoch`` with the epoch, if set.
        dataset: The rows, whose number is the largest batch size that Lightning's tuner tries. It
            is there only if batches are numbers of rows.
    """

    dataset: Any

    batch_sampler = None  # Lightning reads this attribute and ``sampler``

    def __init__(
        self,
        dataset: Any,
        batches: Callable[[int], list[RowIndices]],
        length: int,
        collate: Callable[[Any], Batch],
        num_workers: int = 0,
        source_names: Sequence[str] = (),
        source_of: Callable[[int], str] | None = None,
    ) -> None:
        self._source_names, self._source_of = source_names, source_of
        self._dataset, self._batches, self._collate = dataset, batches, collate
        self._num_workers, self._length = num_workers, length
        self.before_epoch: Callable[[int], None] | None = None
        self._start = (0, 0)  # the epoch and the number of batches to skip
        self.epoch = 0
        self.position = 0

    def __len__(self) -> int:
        return self._length

    @property
    def sampler(self) -> "BatchLoader":
        """The loader itself, because Lightning calls ``set_epoch`` on the sampler of a loader."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        if self.before_epoch is not None:
            self.before_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def resume(self, epoch: int, position: int) -> None:
        """Skip the first ``position`` batches of ``epoch``, and none of other epochs."""
        self._start = self.epoch, self.position = epoch, min(position, len(self))

    @property
    def has_sources(self) -> bool:
        """Whether each batch is of one source, whose name is that of its place."""
        return bool(self._source_names)

    def select(self, batches: list[RowIndices]) -> None:
        """Yield these batches in every epoch, in place of the planned ones."""
        self._batches = lambda _: batches

    def batches(self, epoch: int = 0) -> list[RowIndices]:
        """Return the row indices of each batch of an epoch."""
        return self._batches(epoch)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._start
        self._start = (0, 0)
        self.position = start if epoch == self.epoch else 0
        yield from self._read(self._batches(self.epoch)[self.position :])

    def _read(self, batches: list[RowIndices]) -> Iterator[Batch]:
        if self._num_workers:  # workers do not tokenize; tokenizers would warn of every fork
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=_BatchSampler(batches),
            collate_fn=self._collate,
            num_workers=self._num_workers,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_exit_with_trainer if self._num_workers else None,
        )
        with _sigterm_blocked():
            iterator = iter(loader)  # forks the workers
        try:
            for rows, batch in zip(batches, iterator, strict=True):
                if self._source_names:
                    batch["source"] = self._source_names[self.position]
                if self._source_of is not None:
                    batch["sources"] = list(map(self._source_of, rows))
                self.position += 1
                yield batch
        except RunError as error:  # that of a worker has its traceback in front
            raise RunError(str(error).rpartition("RunError: ")[2].strip()) from error

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, as the DataModule saves the position; without it Lightning warns."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; see ``state_dict``."""


@contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM inside the ``with`` statement, and permanently in processes forked there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_trainer(worker: int) -> None:
    """End this worker at SIGTERM only if the training process sent it.

    SLURM sends a signal to every process of a job. It would kill the workers, and their death would
    raise an error in the training process in the middle of a step that is to be finished and saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
