import itertools
import multiprocessing
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from peft_lightning.data.loader import BatchLoader


def loader(num_workers=0):
    """Three batches an epoch: epoch e's are [10 e], [10 e + 1], [10 e + 2]."""
    return BatchLoader(
        range(100), lambda e: [np.array([10 * e + i]) for i in range(3)], 3, list, num_workers
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epochs_batches_come_in_order(num_workers):
    batches = loader(num_workers)
    assert len(batches) == 3
    assert list(batches) == [[0], [1], [2]]
    batches.sampler.set_epoch(4)
    assert list(batches) == [[40], [41], [42]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_is_looked_up_at_the_first_batch(num_workers):
    batches = loader(num_workers)
    iterator = iter(batches)
    batches.set_epoch(2)
    assert list(iterator) == [[20], [21], [22]]


def test_a_resumed_epoch_goes_on_where_it_stopped_and_later_ones_start_anew():
    batches = loader()
    batches.resume(epoch=1, position=2)
    assert batches.position == 2  # also before a batch is asked for
    batches.set_epoch(1)
    assert list(batches) == [[12]]
    batches.set_epoch(2)
    assert list(batches) == [[20], [21], [22]]
    batches.set_epoch(1)
    assert list(batches) == [[10], [11], [12]]


def test_another_epoch_than_the_resumed_one_starts_anew():
    batches = loader()
    batches.resume(epoch=1, position=2)
    batches.set_epoch(2)
    assert list(batches) == [[20], [21], [22]]


def test_a_live_iterator_follows_a_late_resume():
    batches = loader()
    iterator = iter(batches)
    batches.resume(epoch=1, position=1)
    batches.set_epoch(1)
    assert list(iterator) == [[11], [12]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_position_is_what_was_handed_out_not_what_was_read_ahead(num_workers):
    batches = loader(num_workers)
    for done, _ in enumerate(batches, start=1):
        assert batches.position == done
    assert batches.position == 3
    batches.set_epoch(1)
    assert batches.position == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_random_numbers_are_left_alone(num_workers):
    before = torch.get_rng_state()
    list(itertools.islice(loader(num_workers), 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_worker_ends_with_its_trainer_and_not_by_a_signal_to_all_processes():
    iterator = iter(loader(num_workers=1))
    assert next(iterator) == [0]
    [worker] = multiprocessing.active_children()
    sender = f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", sender], check=True)
    assert list(iterator) == [[1], [2]]

    iterator = iter(loader(num_workers=1))
    next(iterator)
    [worker] = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=30)
    assert worker.exitcode == 0
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
