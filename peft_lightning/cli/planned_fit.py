"""What ``fit`` would run, built and not started: for ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings

from peft_lightning.adapters import Adapter
from peft_lightning.cli.config_index import read_arguments
from peft_lightning.cli.trainer import PeftCLI
from peft_lightning.messages import UserError
from peft_lightning.training.checkpoint_path import NO_CHECKPOINT
from peft_lightning.training.log_filters import filter_logs
from peft_lightning.training.schedules import Schedule

ONE_PROCESS = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


class PlannedFit(PeftCLI):
    """Parses the options of ``fit`` and builds trainer, module and data, in one process.

    Args:
        args: The options of ``fit``.
        folder: Where the run writes, in place of its own folder.
        elsewhere: Whether the run is for another machine: nothing is asked of this one's GPU.

    Attributes:
        processes: Processes that the run trains in.
        root: The run's own folder.
    """

    def __init__(self, args: list[str], folder: Path, elsewhere: bool = False) -> None:
        self.folder, self.elsewhere = folder, elsewhere
        self.processes, self.root = 1, ""
        self.precision: Any = "auto"
        set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
        filter_logs()
        super().__init__("fit", args, read_arguments(args))

    def before_instantiate_classes(self) -> None:
        """Fill in the defaults of ``fit``, and let it write to another folder."""
        config = self.config[self.command]
        if config.ckpt_path not in (None, NO_CHECKPOINT):
            raise UserError(
                f"ckpt_path {config.ckpt_path}: plan counts a run from its first step; give "
                f"--ckpt_path {NO_CHECKPOINT}"
            )
        if config.trainer.fast_dev_run or config.trainer.barebones:
            name = "fast_dev_run" if config.trainer.fast_dev_run else "barebones"
            raise UserError(f"trainer.{name} is no run to plan: leave it out")
        config.overwrite = True  # nothing is written into the run's own folder
        super().before_instantiate_classes()
        trainer = config.trainer
        self.root, trainer.default_root_dir = trainer.default_root_dir, str(self.folder)
        trainer.logger = trainer.logger if trainer.logger is False else None
        trainer.enable_progress_bar = False
        self.precision = trainer.precision
        if self.elsewhere:
            self.processes = _number(trainer.devices) * _number(trainer.num_nodes)
            trainer.accelerator, trainer.precision = "cpu", "32-true"
            for name, value in ONE_PROCESS.items():
                trainer[name] = value

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the trainer; if it has several processes, another with one, and count them."""
        options = self.config_init[self.command].trainer
        callbacks = options.callbacks
        options.callbacks = list(callbacks) if isinstance(callbacks, list) else callbacks
        built = super().instantiate_trainer(**kwargs)
        if built.world_size == 1:
            return built
        self.processes = built.world_size
        options.callbacks = callbacks
        return super().instantiate_trainer(**{**kwargs, **ONE_PROCESS})

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def _number(devices: Any) -> int:
    """Return how many devices an option names; 1 for those that are there."""
    if isinstance(devices, list):
        return max(1, len(devices))
    text = str(devices)
    return max(1, int(text)) if text.lstrip("-").isdigit() else 1
