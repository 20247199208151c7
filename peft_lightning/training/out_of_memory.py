"""Out of memory: what it was needed for, and which options need less."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from peft_lightning.kernels.machine import find_machine
from peft_lightning.kernels.precision import HALF, choose
from peft_lightning.training.batch_size import count_rows, token_batches

_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not enough, of the GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


class OutOfMemoryAdvice(Callback):
    """Adds to an error for lack of memory a note on the batch and on what would need less."""

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._remember(batch)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any
    ) -> None:
        self._remember(batch)

    on_test_batch_start = on_validation_batch_start  # type: ignore[assignment]
    on_predict_batch_start = on_validation_batch_start  # type: ignore[assignment]

    def _remember(self, batch: Any) -> None:
        self._batch = batch

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if is_out_of_memory(exception):
            exception.add_note(self._advice(trainer, pl_module))

    def _advice(self, trainer: Any, module: Any) -> str:
        """Return what memory was needed for, and the options that need less of it."""
        tokens = sum(part["input_ids"].numel() for part in token_batches(self._batch))
        rows = count_rows(self._batch)
        needed = f"a batch of {tokens:,} tokens in {rows} rows" if rows else "loading the model"
        if self._batch is not None and not rows:
            needed = "a batch"
        options = []
        if rows > 1:
            options.append(f"data.tokens_per_batch {tokens // 2}")
        elif rows == 1:
            options.append(f"data.max_length {tokens // 2}")
        if trainer.training and rows > 1:
            twice = 2 * trainer.accumulate_grad_batches
            as_many = f"with trainer.accumulate_grad_batches {twice} a step has as many tokens"
            options[-1] += f" ({as_many})"
        if trainer.training and rows and not module.activation_checkpointing:
            options.append("model.activation_checkpointing true")
        options += _smaller_weights(trainer, module)
        return f"memory was not enough for {needed}: try {', '.join(options) or 'a smaller model'}"


def _smaller_weights(trainer: Any, module: Any) -> list[str]:
    """Return the option for frozen weights of two bytes, where they have four."""
    if module.adapter.trains_base or module.dtype_name in HALF:
        return []
    precision, notes = str(trainer.precision), []
    wide = module.dtype_name == "float32" or precision == "32-true"
    if module.model is not None:
        wide = module.model.dtype == torch.float32
        mebibytes = sum(p.numel() for p in module.model.parameters()) / 2**20
        notes = [f"{2 * mebibytes:,.1f} instead of {4 * mebibytes:,.1f} MiB of weights"]
    if choose(find_machine(trainer.strategy.root_device), "bfloat16", precision).emulated:
        notes.append("slow on this CPU")
    note = f" ({', '.join(notes)})" if notes else ""
    return [f"model.dtype bfloat16{note}"] if wide else []
