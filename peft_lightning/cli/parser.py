"""Parser: LightningCLI's parser, whose --print_config shows what a run will use."""

from __future__ import annotations

from enum import Enum
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from peft_lightning.cli.config_errors import RecordingParser
from peft_lightning.training.run_defaults import fill_epochs


class Parser(RecordingParser, LightningArgumentParser):
    """LightningCLI's parser, with epochs and learning rate of the run in ``--print_config``."""

    cli: Any = None  # the PeftCLI that parses

    def dump(self, cfg: Namespace, **kwargs: Any) -> str:
        """Return ``cfg`` as YAML; during the parse, this is only called for --print_config."""
        if self.cli is not None and not hasattr(self.cli, "config"):
            cfg = cfg.clone()
            if self.cli.command == "fit":
                fill_epochs(cfg.trainer)
            self.cli.fill_module_options(cfg)
        return super().dump(enums_as_values(cfg), **kwargs)


def enums_as_values(value: Any) -> Any:
    """Return a configuration whose enumeration members are their values, as YAML has them.

    A parameter ``interval: str = Interval.step``, as that of Lightning's ``Timer``, has such a
    default, which jsonargparse cannot write.
    """
    if isinstance(value, Namespace):
        return Namespace(**{name: enums_as_values(part) for name, part in vars(value).items()})
    if isinstance(value, dict):
        return {name: enums_as_values(part) for name, part in value.items()}
    if isinstance(value, list):
        return [enums_as_values(part) for part in value]
    return value.value if isinstance(value, Enum) and isinstance(value, str) else value
