"""A loader that knows its position: the part that exact resume needs of the data."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from peft_lightning.data.batching import Batch, Rows


class _Indices(Sampler[list[int]]):
    """Row indices of batches as lists, made one by one: those of a whole epoch are large."""

    def __init__(self, batches: list[Rows]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return map(np.ndarray.tolist, self._batches)


class BatchLoader:
    """Iterates over an epoch's batches, from the first or from where a checkpoint was taken.

    Not a ``DataLoader``, so that Lightning neither wraps nor re-creates it. It is iterated lazily:
    the order is looked up at the first batch, after Lightning has called ``set_epoch``, which for
    a resumed run it does later than ``iter``. Random numbers come from a private generator: the
    global ones are the model's. Workers only copy token ids, so nothing of theirs needs saving.

    Args:
        dataset: Gives a row by its index.
        batches: Gives the batches of an epoch, as row indices.
        length: The number of batches, the same for each epoch.
        collate: From rows to a batch.
        num_workers: Processes that read ahead; 0 reads in this one.
        before_epoch: Called by ``set_epoch``, with the epoch.
    """

    batch_sampler = None  # Lightning looks for both names

    def __init__(
        self,
        dataset: Any,
        batches: Callable[[int], list[Rows]],
        length: int,
        collate: Callable[[Any], Batch],
        num_workers: int = 0,
        before_epoch: Callable[[int], None] | None = None,
    ) -> None:
        self._dataset, self._batches, self._collate = dataset, batches, collate
        self._num_workers, self._before_epoch = num_workers, before_epoch
        self._length = length
        self._start = (0, 0)  # the epoch and batch to go on from
        self.epoch = 0
        self.position = 0  # batches of this epoch handed out

    def __len__(self) -> int:
        return self._length

    @property
    def sampler(self) -> "BatchLoader":
        """Itself: Lightning calls ``set_epoch`` on a loader's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the one that is iterated over next."""
        if self._before_epoch is not None:
            self._before_epoch(epoch)
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def resume(self, epoch: int, position: int) -> None:
        """Go on behind the first ``position`` batches of ``epoch``; other epochs start anew."""
        self._start = self.epoch, self.position = epoch, min(position, len(self))

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self._start
        self._start = (0, 0)
        self.position = start if epoch == self.epoch else 0
        yield from self._read(self._batches(self.epoch)[self.position :])

    def _read(self, batches: list[Rows]) -> Iterator[Batch]:
        if self._num_workers:  # they do not tokenise; tokenizers warns of every fork otherwise
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=_Indices(batches),
            collate_fn=self._collate,
            num_workers=self._num_workers,
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_end_with_the_trainer if self._num_workers else None,
        )
        with _sigterm_held_back():
            iterator = iter(loader)  # forks the workers
        for batch in iterator:
            self.position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the DataModule keeps the position (Lightning warns without this)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing; see ``state_dict``."""


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """Hold SIGTERM back, here until the block ends, and for good in processes that it forks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_the_trainer(worker: int) -> None:
    """Let SIGTERM end this worker only if it comes from the process that trains.

    SLURM sends a signal to every process of a job. torch's workers die of it, and the trainer of
    that, in the middle of a step that it was about to finish and save.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    trainer = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
