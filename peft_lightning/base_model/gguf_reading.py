"""Reading GGUF files without the slow parts of transformers' and gguf's readers.

transformers reads the whole header, vocabulary included, anew for the config, the weights and the
tokenizer, looks up the names of all tensors for each submodule, and gguf's reader slices a numpy
memmap some million times, which costs five times as much as slicing a plain array. The values are
theirs all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from transformers import modeling_gguf_pytorch_utils

from peft_lightning.process.progress import Progress


class ArrayReader(gguf.GGUFReader):
    """gguf's reader over a plain array, which has the memory map as its base."""

    _plain: NDArray[np.uint8]

    @property
    def data(self) -> Any:
        """The bytes of the file, (n,) uint8."""
        return self._plain

    @data.setter
    def data(self, mapped: Any) -> None:
        self._plain = mapped.view(np.ndarray)


@contextmanager
def reading_gguf() -> Iterator[Callable[[Path], gguf.GGUFReader]]:
    """Let transformers read each GGUF file's header once in this context.

    Yields:
        What opens such a file; inside of an outer context the outer one's, so that a model and its
        tokenizer can share one reading.
    """
    plain: Any = gguf.GGUFReader
    if not isinstance(plain, type):  # an outer context is at work
        yield plain
        return
    names = gguf.get_tensor_name_map
    opened = cache(ArrayReader)

    def open_file(path: Any, *args: Any) -> gguf.GGUFReader:
        return opened(Path(path)) if not args else plain(path, *args)

    library: Any = gguf  # transformers imports both names from it whenever it reads a file
    library.GGUFReader, library.get_tensor_name_map = open_file, cache(names)
    loader: Any = modeling_gguf_pytorch_utils
    bar, loader.tqdm = loader.tqdm, _counted
    try:
        yield open_file
    finally:
        library.GGUFReader, library.get_tensor_name_map = plain, names
        loader.tqdm = bar


def _counted(tensors: Collection[Any], **options: Any) -> Iterator[Any]:
    """Yield ``tensors`` and show how many of them are read, in place of a bar of tqdm's."""
    with Progress("loading the GGUF file", len(tensors), "tensors") as progress:
        for count, tensor in enumerate(tensors):
            progress.update(count)
            yield tensor
