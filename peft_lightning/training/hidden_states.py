"""HiddenStates: training above frozen layers whose outputs are read from disk, if asked for."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from peft_lightning.hidden_cache.cache import cache_of_run


class HiddenStates(Callback):
    """Opens the cache of ``model.cache_hidden_states`` when a run begins."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.outputs.frozen = (
            cache_of_run(pl_module) if pl_module.cache_hidden_states else None
        )
