"""Out of memory: what it was needed for, and which options need less."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

_MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory was not enough, of the GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


class MemoryAdvice(Callback):
    """Adds to an error for lack of memory a note on the batch and on what would need less."""

    def __init__(self) -> None:
        self._ids: Tensor | None = None
        self._positions: Tensor | None = None

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
        self._ids, self._positions = batch["input_ids"], batch.get("position_ids")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if is_out_of_memory(exception):
            exception.add_note(self._advice(trainer, pl_module))

    def _advice(self, trainer: Any, module: Any) -> str:
        advice = []
        if self._ids is not None:
            tokens, rows = self._ids.numel(), len(self._ids)
            if rows == 1 and self._positions is not None:
                rows = int((self._positions.cpu() == 0).sum())
            where = f"memory was not enough for a batch of {tokens:,} tokens in {rows} rows"
            if rows > 1:
                advice.append(f"data.tokens_per_batch {max(1, tokens // 2)}")
                if trainer.training:
                    advice[-1] += (
                        f" (with trainer.accumulate_grad_batches "
                        f"{2 * trainer.accumulate_grad_batches} a step has as many tokens)"
                    )
            else:
                advice.append(f"data.max_length {max(2, tokens // 2)}")
            if trainer.training and not module.activation_checkpointing:
                advice.append("model.activation_checkpointing true")
        else:
            where = "memory was not enough to load the model"
        if module.model is None or module.model.dtype == torch.float32:
            size = ""
            if module.model is not None:
                count = sum(p.numel() for p in module.model.parameters())
                size = f" (the weights then take {count * 2 / 2**20:,.0f} instead of "
                size += f"{count * 4 / 2**20:,.0f} MiB)"
            advice.append(f"model.dtype bfloat16{size}")
        return f"{where}: try {', '.join(advice) or 'a smaller model'}"
