"""The ``config.yaml`` of a run: its whole configuration, without how it was resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.files import atomic_file
from peft_lightning.messages import without_secrets


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration to ``<default_root_dir>/config.yaml`` when training starts.

    Secrets are removed, and their names are logged. The checkpoint that the run continues from is
    removed too, as new runs can be started from the file.

    A run that fails during its setup does not overwrite the file of the previous run.

    Args:
        args: Arguments of Lightning's callback.
        init_from: The value of ``model.init_from`` that the user gave.
        kwargs: Arguments of Lightning's callback.
    """

    def __init__(self, *args: Any, init_from: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.init_from = init_from

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing; Lightning would write the file here."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / self.config_filename
            with atomic_file(path) as file:
                config = without_resume(self.config, self.init_from)
                self.parser.save(config, file, skip_none=False, multifile=False)
                removed: list[str] = []
                saved = yaml.safe_load(file.read_text(encoding="utf-8"))
                clean = without_secrets(saved, removed)
                if clean != saved:
                    file.write_text(yaml.safe_dump(clean, sort_keys=False), encoding="utf-8")
                    rank_zero_info(f"{path} is without secrets: {', '.join(removed)}")


def without_resume(config: Namespace, init_from: str | None) -> Namespace:
    """Return the configuration of ``fit`` without the options of a resume.

    These are the checkpoint, the permission to continue with other data, and a checkpoint that
    replaces an ``init_from`` which was removed since the start of the run.
    """
    run = config.clone()
    for name in ("ckpt_path", "overwrite", "verbose", "weights_only"):
        run.pop(name, None)
    data = run.data.init_args if "init_args" in run.data else run.data
    if "allow_changed_data" in data:
        data.allow_changed_data = False
    if init_from is not None:
        section = run.model.init_args if "init_args" in run.model else run.model
        section.init_from = init_from
    return run
