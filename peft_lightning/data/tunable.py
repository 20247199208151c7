"""Attributes of a DataModule that a tuner changes: the sizes of its batches."""

from dataclasses import replace
from typing import Any

from peft_lightning.data.options import BatchOptions
from peft_lightning.messages import UserError


class TunableBatches:
    """``batch_size`` and ``tokens_per_batch``, which may be set at any time before training.

    The next loaders have batches of the new size: those of ``BatchSizeFinder``'s trials, and of
    the run that follows.
    """

    batch_options: BatchOptions
    _position: Any

    @property
    def batch_size(self) -> int:
        """Rows per batch and device."""
        return self.batch_options.batch_size

    @batch_size.setter
    def batch_size(self, rows: int) -> None:
        if self.batch_options.tokens_per_batch is not None:
            raise UserError(
                "data.tokens_per_batch decides how large batches are, so data.batch_size changes "
                "nothing: leave it out, or tune it: BatchSizeFinder(batch_arg_name="
                "'tokens_per_batch', init_val=1024)"
            )
        self._change(batch_size=rows)

    @property
    def tokens_per_batch(self) -> int | None:
        """Maximum tokens per batch, instead of ``batch_size``."""
        return self.batch_options.tokens_per_batch

    @tokens_per_batch.setter
    def tokens_per_batch(self, tokens: int | None) -> None:
        self._change(tokens_per_batch=tokens)

    def _change(self, **options: int | None) -> None:
        """Change options; the place in the training rows is forgotten if they differ."""
        changed = replace(self.batch_options, **options)  # type: ignore[arg-type]
        if changed != self.batch_options:
            self.batch_options, self._position = changed, None
