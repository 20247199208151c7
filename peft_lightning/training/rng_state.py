"""Every random generator of every rank, saved and restored with a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback


class RNGState(Callback):
    """Saves and restores every random generator, of every rank.

    Lightning saves none. They are restored when training starts, after everything that draws
    from them on the way there, and before a validation that a resumed epoch may begin with.

    Ranks draw different numbers, so different dropout: rank 0 goes on with the generators that
    ``seed_everything`` and the initial weights leave, and every other rank seeds its own from
    the run's seed, its rank and the step. So does a rank that a checkpoint does not know, because
    the run had fewer processes; what it remembers of ranks that are no more is left out.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": _every_rank(_random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank, known = trainer.global_rank, self._restored or []
        if rank < len(known):
            _set_random_state(known[rank])
        elif rank > 0:
            _seed((torch.initial_seed(), rank, trainer.global_step))
        self._restored = None


def _every_rank(state: dict[str, Any]) -> list[dict[str, Any]]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [state]
    states: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _random_state() -> dict[str, Any]:
    """Return the generators' states as tensors and plain values, which a safe load accepts."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            cached,
        ),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _seed(origin: tuple[int, ...]) -> None:
    """Seed every generator by a number that ``origin`` decides."""
    seed = int(np.random.SeedSequence(origin).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
