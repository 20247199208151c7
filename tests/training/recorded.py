"""Callbacks that write down the learning rates of a run and keep a checkpoint of its middle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch


class Rates(L.Callback):
    """The learning rate of each optimizer step, that of the first group."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


class SaveAfter(L.Callback):
    """Saves a checkpoint after an optimizer step, once."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


def trained(trainer: L.Trainer) -> dict[str, torch.Tensor]:
    """Return copies of the adapter's tensors after a run."""
    return {name: t.clone() for name, t in trainer.lightning_module.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that tensors are equal bit for bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
