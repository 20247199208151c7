"""Evaluation batches that never mix sources, so that each source has a loss of its own."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from peft_lightning.data.batching import BatchPlan, RowIndices


class PlanPerSource:
    """The batches of several sources, none of which has rows of two sources.

    A step of all ranks is of one source, so that every rank knows the same sources wherever an
    evaluation ends. The sources alternate in proportion to their numbers of batches: the first
    batches, as ``limit_val_batches`` takes them, are of all sources.

    Args:
        plan: The batches to form; their sources are separated.
        names: The names of the sources.
    """

    def __init__(self, plan: BatchPlan, names: Sequence[str]) -> None:
        self._world_size = plan.world_size
        self._plans = [plan.with_sources([source]) for source in plan.sources]
        places = []
        for i, part in enumerate(self._plans):
            steps = len(part) // self._world_size
            places += [((step + 0.5) / steps, i, step) for step in range(steps)]
        self._steps = [(i, step) for _, i, step in sorted(places)]
        self.source_names = [names[i] for i, _ in self._steps]

    def __len__(self) -> int:
        """Return the number of batches, over all ranks."""
        return len(self._steps) * self._world_size

    def batches_of_rank(self, epoch: int, rank: int) -> list[RowIndices]:
        """Return the row indices of the batches of one rank."""
        parts = [plan.batches_of_rank(epoch, rank) for plan in self._plans]
        return [parts[i][step] for i, step in self._steps]


def batches_of_rank(
    plan: BatchPlan, rank: int, names: Sequence[str]
) -> tuple[Callable[[int], list[RowIndices]], int, Sequence[str]]:
    """Return the batches of one rank, of one source each if the sources have names.

    Args:
        plan: The batches of all ranks, which mix sources.
        rank: The rank.
        names: The names of the sources of ``plan``; empty for batches that mix them.

    Returns:
        A function from the epoch to the row indices of each batch, the number of batches, and the
        name of the source of each of them, none for batches that mix sources.
    """
    if not names:
        of_rank = functools.partial(plan.batches_of_rank, rank=rank)
        return of_rank, len(plan) // plan.world_size, ()
    separate = PlanPerSource(plan, names)
    of_rank = functools.partial(separate.batches_of_rank, rank=rank)
    return of_rank, len(separate) // plan.world_size, separate.source_names


def source_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each source, for the names of metrics: the stem of its file.

    A name that occurs again gets a number: ``chat``, ``chat_2``.

    Args:
        paths: The sources as the user wrote them.
    """
    found: list[str] = []
    for path in paths:
        name = re.sub(r"(\.[A-Za-z]+)+$", "", Path(path).name) or Path(path).resolve().name
        number = 1
        while (unique := name if number == 1 else f"{name}_{number}") in found:
            number += 1
        found.append(unique)
    return found
