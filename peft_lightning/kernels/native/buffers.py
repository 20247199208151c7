"""Memory of large tensors on a CPU, used again as soon as a tensor is gone.

What a step keeps for its backward pass has other sizes with every batch, and lies in the heap
between small things that stay, so that the holes of one batch rarely fit the next: the heap of a
run grows for hundreds of steps. Here each large tensor has memory of its own, and a batch uses
that of the largest one before it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import sys
import threading
import weakref
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 18  # bytes; smaller tensors are torch's own
TRIMMED_AFTER = 1 << 26  # bytes of new memory for a larger batch


class Buffers:
    """Free memory by size; what a tensor gives back is found by the next one that fits."""

    def __init__(self) -> None:
        self._free: list[tuple[int, int, mmap.mmap]] = []  # bytes, a number, memory
        self._returned: deque[mmap.mmap] = deque()  # free, not yet in its place
        self._lent: dict[int, tuple[weakref.ref[Any], mmap.mmap]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._outgrown = TRIMMED_AFTER  # bytes: the first batch trims what loading has left

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of ``shape``, its numbers whatever was there."""
        size = math.prod(shape) * dtype.itemsize
        memory = self._take(-(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        held = (ctypes.c_char * size).from_buffer(memory)
        loan = weakref.ref(held, self._give_back)  # called once no tensor has this memory
        self._lent[id(loan)] = loan, memory
        return torch.frombuffer(held, dtype=dtype).view(shape)

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            while self._returned:
                memory = self._returned.popleft()
                insort(self._free, (len(memory), next(self._numbers), memory))
            place = bisect_left(self._free, (size,))
            if place < len(self._free) and self._free[place][0] <= 2 * size:
                return self._free.pop(place)[2]
            if place:  # a larger batch has come: give back the largest of those too small
                self._free.pop(place - 1)
                self._outgrown += size
                if self._outgrown > TRIMMED_AFTER:
                    self._outgrown = 0
                    trim_heap()  # its holes are as much too small
        try:
            return _mapped(size)
        except OSError:  # perhaps what is free here is what is missing
            with self._lock:
                self._free.clear()
        try:
            return _mapped(size)
        except OSError as error:
            raise MemoryError(f"not enough memory for a tensor of {size:,} bytes") from error

    def _give_back(self, loan: weakref.ref[Any]) -> None:
        self._returned.append(self._lent.pop(id(loan))[1])  # at any time: takes no lock


def _mapped(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def trim_heap() -> None:
    """Give the free memory of the heap back to the system, where the C library can."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


_BUFFERS = Buffers()


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor of ``shape`` with the dtype and device of ``like``, not initialised."""
    large = math.prod(shape) * like.itemsize >= LARGE and like.device.type == "cpu"
    if not large or torch.compiler.is_compiling() or sys.platform == "win32":
        return like.new_empty(shape)
    return _BUFFERS.empty(shape, like.dtype)
