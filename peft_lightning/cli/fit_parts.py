"""The module and the data that ``fit`` would build, without a trainer: for commands before it."""

from __future__ import annotations

from typing import Any

from jsonargparse import set_parsing_settings

from peft_lightning.adapters import Adapter
from peft_lightning.cli.config_index import read_arguments
from peft_lightning.cli.trainer import PeftCLI
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.training.log_filters import filter_logs, print_one_line_warnings
from peft_lightning.training.schedules import Schedule


class _FitParts(PeftCLI):
    """Parses the options of ``fit`` and builds module and data; nothing is loaded or run."""

    def before_instantiate_classes(self) -> None:
        """Fill in the defaults of ``fit``, and look for no checkpoint."""
        self.config[self.command].ckpt_path = None
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no trainer."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def fit_parts(args: list[str]) -> tuple[Any, SFTDataModule]:
    """Return the module and the data of ``fit``.

    Args:
        args: The options of ``fit``.

    Raises:
        UserError: If ``fit`` would refuse them.
    """
    set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
    filter_logs()
    print_one_line_warnings()
    built = _FitParts("fit", args, read_arguments(args))
    return built.model, built.datamodule
