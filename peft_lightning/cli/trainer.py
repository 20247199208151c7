"""fit, validate, test and predict: LightningCLI with other defaults, and errors in one line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter
from peft_lightning.cli.class_lookup import find_class
from peft_lightning.cli.config_errors import explain
from peft_lightning.cli.config_index import ConfigIndex, default_root, repeated_options
from peft_lightning.cli.defaults import (
    fill_learning_rate,
    fill_loggers,
    take_back_defaults,
    take_class_defaults,
)
from peft_lightning.cli.errors import innermost, one_line, reason_in_union
from peft_lightning.cli.fit_defaults import (
    default_base_model,
    defaults_used,
    what_is_missing,
)
from peft_lightning.cli.option_bounds import check_bounds, located
from peft_lightning.cli.parser import Parser
from peft_lightning.cli.predict import (
    ADAPTER_HELP,
    OUTPUT_HELP,
    require_one_process_and_rows,
    write_predictions,
)
from peft_lightning.cli.save_config import SaveConfig
from peft_lightning.cli.start import (
    NothingLeftError,
    checkpoint_to_start_from,
    require_writable,
    take_init_from,
    use_trained_prompts,
)
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.files import REFUSED
from peft_lightning.messages import UserError
from peft_lightning.module import CausalLMModule
from peft_lightning.process import slurm
from peft_lightning.training.clipping import require_clip_val
from peft_lightning.training.cluster.partners import watch_partners
from peft_lightning.training.cluster.submission import changes_since
from peft_lightning.training.early_checks import check_early
from peft_lightning.training.finished_run import finished_step
from peft_lightning.training.log_filters import filter_logs, print_as_a_program
from peft_lightning.training.precision import settle_resources
from peft_lightning.training.run_defaults import TRAINER_DEFAULTS, fill_epochs
from peft_lightning.training.run_end import nothing_left, run_ended
from peft_lightning.training.schedules import Schedule
from peft_lightning.training.summary import Summary, rank_zero_print
from peft_lightning.training.trainer import Trainer, precision_option

PROG = "python -m peft_lightning"

VERBOSE_HELP = "Say how every part of a step is computed."
OVERWRITE_HELP = {
    "fit": "Replace the finished run in the folder of this one.",
    "predict": "Replace the file of answers that is there.",
}


def run_trainer(command: str, args: list[str], index: ConfigIndex) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: The name of the command.
        args: The command line after that name.
        index: The same, as ``read_arguments`` returns it.
    """
    if command == "predict":
        args = [re.sub(r"^--adapter(=|$)(?!\[)", r"--adapter+\1", a) for a in args]
    set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
    filter_logs()
    print_as_a_program()
    for option, given in repeated_options(args):
        rank_zero_info(f"{option} is given several times: {given[-1]} is used, the last of them")
    try:
        PeftCLI(command, args, index)
    except UserError as error:
        error.args = (located(str(error), index),)
        raise
    if torch.distributed.is_initialized():  # its threads can abort the interpreter's exit:
        torch.distributed.destroy_process_group()  # torch issue 190489


class PeftCLI(LightningCLI):
    """LightningCLI for an adapter on a frozen model.

    Args:
        command: fit, validate, test or predict.
        args: The command line after the name of the command.
        index: The same, as ``read_arguments`` returns it.
    """

    def __init__(self, command: str, args: list[str], index: ConfigIndex) -> None:
        self.command, self.index = command, index
        self.experiment, self.module_class = self._class_of("model", CausalLMModule)
        self.own_data, self.data_class = self._class_of("data", L.LightningDataModule)
        self.default_base = None
        if command == "fit":
            self.default_base = default_base_model(index, self.module_class)
        if self.default_base is not None:
            args = [*args, "--model.base_model", self.default_base]
        try:
            super().__init__(
                CausalLMModule,
                SFTDataModule if self.own_data is None else L.LightningDataModule,
                trainer_class=Trainer,
                parser_class=Parser,
                args=[command, *args],
                subclass_mode_model=self.experiment is not None,
                subclass_mode_data=self.own_data is not None,
                save_config_callback=SaveConfig,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except NothingLeftError as end:
            rank_zero_print(str(end))
        except OSError as error:
            if error.filename is None and error.errno in REFUSED:  # by a library
                root = self.trainer.default_root_dir
                raise OSError(error.errno, error.strerror, root) from error
            raise

    def _class_of(self, section: str, base: type) -> tuple[str | None, type]:
        """Return the class path of a section that names a class of the user's, and the class."""
        named = self.index.class_of(section)
        if named is None:
            return None, base
        found = find_class(str(named.value), (base,))
        if isinstance(found, str):
            raise UserError(f"{named.where}: {section}: {found}")
        return str(named.value), found

    # ---- parsing ------------------------------------------------------------------------------

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that runs, with the Trainer's arguments that are not options."""
        method = set(inspect.signature(getattr(L.Trainer, self.command)).parameters)
        return {self.command: method - {"ckpt_path", "verbose", "weights_only"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that raises its errors and does not accept abbreviations."""
        kwargs |= {"allow_abbrev": False, "exit_on_error": False}
        kwargs.setdefault("prog", PROG)
        parser = super().init_parser(**kwargs)
        assert isinstance(parser, Parser)
        parser.cli = self
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Make a user's class the default; its section may hold its arguments alone."""
        for section, path in (("model", self.experiment), ("data", self.own_data)):
            if path is not None:
                parser.set_defaults({section: {"class_path": path}})
        if self.command == "predict":
            parser.add_argument("--adapter", type=list[str] | None, help=ADAPTER_HELP)
            parser.add_argument("--output", type=str | None, help=OUTPUT_HELP)
        if self.command == "fit":
            parser.add_argument("--verbose", action="store_true", help=VERBOSE_HELP)
        if said := OVERWRITE_HELP.get(self.command):
            parser.add_argument("--overwrite", action="store_true", help=said)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error becomes one line with the place and what is wrong."""
        self.chosen = Namespace({self.command: Namespace()})
        Parser.recorded.clear()
        try:
            if printing := [a for a in args if a.startswith("--print_config")]:
                with suppress(ArgumentError):  # the printed config may be incomplete
                    rest = [a for a in args if a not in printing]
                    self.chosen = parser.parse_args(rest, defaults=False)
                parser.parse_args(args)  # prints and exits
            self.chosen = parser.parse_args(args, defaults=False)  # without defaults
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            command = self._parser(self.command)
            assert isinstance(command, Parser)
            fault = explain(error, command, self.index) or one_line(innermost(error))
            if self.command == "fit":
                fault = what_is_missing(self.index, fault)
            raise UserError(fault) from error
        check_bounds(self.config[self.command], self.index)

    def _parse_ckpt_path(self) -> None:
        """Do not read options from the checkpoint, which would override YAML and command line."""

    # ---- defaults ------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Set the run folder, the epochs, the learning rate and the checkpoint."""
        config = self.config[self.command]
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = default_root(config.get("config") or [])
        root = Path(config.trainer.default_root_dir).expanduser()
        config.trainer.default_root_dir = str(root)
        require_writable(root)
        fill_loggers(config.trainer.logger, root)
        data = config.data if self.own_data is None else config.data.get("init_args", Namespace())
        if self.command == "fit" and data.get("train", "its own") is None:
            raise UserError(
                "data.train is required for fit: give it in the config under 'data:' "
                "or as --data.train"
            )
        require_clip_val(config.trainer.gradient_clip_val)
        if config.trainer.barebones:
            take_back_defaults(config.trainer, self.chosen[self.command].get("trainer"))
        if self.command == "fit":
            filled = fill_epochs(config.trainer)
            self._defaults = defaults_used(self.index, config.trainer, filled, self.default_base)
        config.ckpt_path = checkpoint_to_start_from(self.command, config, root)
        section = config.model.init_args if self.experiment else config.model
        if section.get("init_from") is not None:
            self.save_config_kwargs = {"init_from": section.init_from}
            given = self.chosen[self.command].get("model") or Namespace()
            given = given.get("init_args") if self.experiment else given
            take_init_from(section, given, config.ckpt_path)
        self.fill_module_options(config)

    def fill_module_options(self, config: Namespace) -> None:
        """Set what follows from other options of the module: defaults of classes, learning rate.

        Args:
            config: The command's configuration; changed in place.
        """
        section = "model.init_args" if self.experiment else "model"
        given = self.chosen[self.command].get(section) or Namespace()
        take_class_defaults(config[section], given)
        if config.get(f"{section}.optimizer.init_args") is not None:
            fill_learning_rate(config[section], given)

    # ---- building ------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build data, module and trainer; a rejected value is a one-line error."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException, ModuleNotFoundError) as error:
            raise UserError(reason_in_union(one_line(innermost(error)))) from error
        if self.command == "fit":
            check_early(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer, in the precision that suits the dtype of the base."""
        trainer = self.config_init[self.command].trainer
        kwargs["precision"] = precision_option(trainer, self.model.dtype_name)
        built = super().instantiate_trainer(**kwargs)
        if self.config_init[self.command].get("verbose"):
            built.callbacks.append(Summary(verbose=True))  # type: ignore[attr-defined]
        settle_resources(built)  # before it starts the other processes
        if built.world_size > 1:
            watch_partners()
        return built

    # ---- running -------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Print the defaults that are used. Not earlier, so that an error is the only line.

        Raises:
            NothingLeftError: If the run is finished.
        """
        step = finished_step(self.trainer, self.config_init["fit"].ckpt_path)
        if step is not None:
            raise NothingLeftError(nothing_left(self.trainer, step))
        for line in self._defaults:
            rank_zero_info(line)
        if slurm.current_job() is not None:
            for line in changes_since(Path(self.trainer.default_root_dir)):
                rank_zero_info(line)

    def after_fit(self) -> None:
        """Print the results, where they are, and what to do with them."""
        rank_zero_print(run_ended(self.trainer))

    def validate(self, **kwargs: Any) -> None:
        """Compute the loss on the validation rows and print it."""
        self._evaluate(self.trainer.validate, kwargs)

    def test(self, **kwargs: Any) -> None:
        """Compute the loss on the test rows and print it."""
        self._evaluate(self.trainer.test, kwargs)

    def _evaluate(self, run: Callable[..., Any], options: dict[str, Any]) -> None:
        is_asked = options.pop("verbose", True)
        self._use_trained_prompts()
        found = run(**options, verbose=False)
        if is_asked:  # a line for each data loader, of four digits
            for metrics in found:
                rank_zero_print(", ".join(f"{name} {v:.4g}" for name, v in metrics.items()))

    def predict(self, datamodule: SFTDataModule, **kwargs: Any) -> None:
        """Write each row of ``data.predict`` with its answer to ``--output``."""
        require_one_process_and_rows(self.trainer, datamodule, self.own_data)
        given = self.config_init["predict"]
        datamodule.predict_adapters = (
            self.model.answer_with(given.adapter) if given.adapter else None
        )
        self._use_trained_prompts()
        write_predictions(self.trainer, self.model, datamodule, given, kwargs)

    def _use_trained_prompts(self) -> None:
        config, chosen = (c[self.command] for c in (self.config_init, self.chosen))
        use_trained_prompts(self.model, self.datamodule, config, chosen.get("data"))
