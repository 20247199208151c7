"""What ``fit`` would build and the configuration of that, without a run: for other commands."""

from __future__ import annotations

import warnings
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

from peft_lightning.adapters import Adapter
from peft_lightning.cli.config_index import read_arguments
from peft_lightning.cli.save_config import without_resume
from peft_lightning.cli.trainer import PeftCLI
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.training.log_filters import filter_logs, print_as_a_program
from peft_lightning.training.schedules import Schedule


class _FitParts(PeftCLI):
    """Parses the options of ``fit`` and builds module and data; nothing is loaded or run."""

    def before_instantiate_classes(self) -> None:
        """Fill in the defaults of ``fit``, and look for no checkpoint."""
        config = self.config[self.command]
        config.ckpt_path, config.overwrite = None, True  # nothing is written
        super().before_instantiate_classes()

    builds_trainer = False

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no trainer, unless it is to be checked."""
        return super().instantiate_trainer(**kwargs) if self.builds_trainer else None

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


class _FitWithTrainer(_FitParts):
    """Builds the trainer as well, which checks its options."""

    builds_trainer = True


def fit_parts(args: list[str]) -> tuple[Any, SFTDataModule]:
    """Return the module and the data of ``fit``.

    Args:
        args: The options of ``fit``.

    Raises:
        UserError: If ``fit`` would refuse them.
    """
    set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
    filter_logs()
    print_as_a_program()
    built = _FitParts("fit", args, read_arguments(args))
    return built.model, built.datamodule


def fit_config(args: list[str], builds_trainer: bool = True) -> dict[str, Any]:
    """Return the whole configuration of ``fit``, as its ``config.yaml`` has it.

    Args:
        args: The options of ``fit``.
        builds_trainer: Whether to build the trainer too, which checks its options, also against
            the devices of this machine.

    Raises:
        UserError: If ``fit`` would refuse them.
    """
    set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
    filter_logs()
    kind = _FitWithTrainer if builds_trainer else _FitParts
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*`srun` command is available")  # nothing runs here
        built = kind("fit", args, read_arguments(args))
    given = built.save_config_kwargs.get("init_from")
    config = without_resume(built.config["fit"], given)
    parser = built._parser("fit")
    dumped = parser.dump(config, skip_none=False, skip_validation=True)
    return dict(yaml.safe_load(dumped))
