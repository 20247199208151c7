"""fit, validate, test and predict: LightningCLI with our defaults and errors in one line."""

from __future__ import annotations

import json
import logging
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter
from peft_lightning.adapters.atomic import existing_folder
from peft_lightning.cli_errors import explain, innermost, one_line
from peft_lightning.cli_given import Given, module_class
from peft_lightning.cli_signatures import Option, find_class, options_of
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.module import CausalLMModule
from peft_lightning.schedules import Schedule

PROG = "python -m peft_lightning"

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,  # the data module's own order is the one that is resumed
    "enable_model_summary": False,  # report.trained_table says it better
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 5,
}
NOISE = "litlogger|litmodels|TPU available"
WARNINGS = (
    "does not have many workers",
    "Checkpoint directory .* exists",
    "LeafSpec",
    "smaller than the logging interval",
)


def run_trainer(command: str, args: list[str], given: list[Given]) -> None:
    """Run ``fit``, ``validate``, ``test`` or ``predict``.

    Args:
        command: The name.
        args: What follows it on the command line.
        given: The same as read by ``read_given``.
    """
    set_parsing_settings(subclasses_enabled=[Adapter, Schedule])
    _quiet()
    PeftCLI(command, args, given)


def _quiet() -> None:
    """Leave out what Lightning says on every run and nobody can act on."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not re.search(NOISE, record.getMessage(), re.I))
    for message in WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")


class SaveConfig(SaveConfigCallback):
    """Writes the whole configuration of a ``fit`` to ``<default_root_dir>/config.yaml``."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            path = Path(trainer.default_root_dir) / self.config_filename
            path.parent.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, path, skip_none=False, overwrite=True, multifile=False
            )


class Parser(LightningArgumentParser):
    """LightningCLI's parser, except that ``--print_config`` shows the learning rate of the run."""

    cli: PeftCLI | None = None

    def dump(self, cfg: Namespace, **kwargs: Any) -> str:
        if self.cli is not None and not hasattr(self.cli, "config"):  # still parsing: this is --print_config
            cfg = cfg.clone()
            self.cli.fill_learning_rate(cfg)
        return super().dump(cfg, **kwargs)


class PeftCLI(LightningCLI):
    """LightningCLI for an adapter on a frozen model.

    Args:
        command: fit, validate, test or predict.
        args: What follows it on the command line.
        given: The same as read by ``read_given``.
    """

    def __init__(self, command: str, args: list[str], given: list[Given]) -> None:
        self.command, self.given = command, given
        named = module_class(given)
        self.experiment = None if named is None else str(named.value)
        self.module_class: type = CausalLMModule
        if named is not None:
            found = find_class(str(named.value), (CausalLMModule,))
            if isinstance(found, str):
                raise ValueError(f"{named.where}: model: {found}")
            self.module_class = found
        super().__init__(
            CausalLMModule,
            SFTDataModule,
            parser_class=Parser,
            args=[command, *args],
            subclass_mode_model=self.experiment is not None,
            save_config_callback=SaveConfig,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ---- parsing ------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        data = {"model", "dataloaders", "datamodule", "weights_only"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": data,
            "test": data,
            "predict": data | {"return_predictions"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs |= {"allow_abbrev": False, "exit_on_error": False}
        kwargs.setdefault("prog", PROG)
        parser = super().init_parser(**kwargs)
        parser.cli = self
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.experiment is not None:  # then a plain 'model:' section gives its arguments
            parser.set_defaults({"model": {"class_path": self.experiment}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; an error becomes one line that says where and what is wrong."""
        self.chosen = Namespace({self.command: Namespace()})
        try:
            if printing := [a for a in args if a.startswith("--print_config")]:
                with suppress(ArgumentError):  # what is printed may lack what is required
                    rest = [a for a in args if a not in printing]
                    self.chosen = parser.parse_args(rest, defaults=False)
                parser.parse_args(args)  # prints and exits
            self.chosen = parser.parse_args(args, defaults=False)  # what was given, and no more
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            fault = explain(self.given, self._options()) or one_line(innermost(error))
            raise ValueError(fault) from error

    def _options(self) -> dict[str, Option]:
        """Return the options of the command as its sections and plain options."""
        method = options_of(getattr(L.Trainer, self.command))
        skipped = self.subcommands()[self.command] | {"self"}
        return {
            "model": Option(section=self.module_class),
            "data": Option(section=SFTDataModule),
            "trainer": Option(section=L.Trainer),
            "seed_everything": Option(bool | int),
            **{name: option for name, option in method.items() if name not in skipped},
        }

    def _parse_ckpt_path(self) -> None:
        """Do not read options from the checkpoint: YAML and command line always win."""

    # ---- what is left open by the user ---------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        config, chosen = self.config[self.command], self.chosen[self.command]
        if config.trainer.default_root_dir is None:
            config.trainer.default_root_dir = self._default_root()
        if self.command == "fit" and config.data.train is None:
            raise ValueError(
                "data.train is required for fit: give it in the config under 'data:' "
                "or as --data.train"
            )
        self.fill_learning_rate(config)
        config.ckpt_path = self._checkpoint(config.ckpt_path, Path(config.trainer.default_root_dir))

    def fill_learning_rate(self, config: Namespace) -> None:
        """Give the optimizer the module's or the adapter's learning rate unless it has its own.

        Without this an optimizer named without ``lr`` would train at its class's default.

        Args:
            config: The command's configuration; changed in place.
        """
        section = "model.init_args" if self.experiment else "model"
        model = config.get(section)
        arguments = model.get("optimizer.init_args") if model else None
        if arguments is None or "lr" not in arguments:
            return
        if self.chosen[self.command].get(f"{section}.optimizer.init_args.lr") is not None:
            if model.learning_rate is not None:
                raise ValueError(
                    f"two learning rates: model.learning_rate is {model.learning_rate} and "
                    f"model.optimizer.init_args.lr is {arguments.lr}; leave one out"
                )
        elif model.learning_rate is not None:
            arguments.lr, model.learning_rate = model.learning_rate, None
        else:
            adapter = find_class(model.adapter.class_path, (Adapter,))
            assert not isinstance(adapter, str), adapter
            arguments.lr = adapter.learning_rate

    def _default_root(self) -> str:
        """Return ``runs/<name of the config file>``, the names joined by + if there are several."""
        files = self.config[self.command].get("config") or []
        stems = [Path(str(file)).stem for file in files if file is not None]
        return str(Path("runs") / ("+".join(stems) or "default"))

    def _checkpoint(self, name: str | None, root: Path) -> str | None:
        """Return the checkpoint that ``last``, ``best`` or a path means.

        Raises:
            ValueError: If it is not there; says what is.
        """
        if name is None:
            if self.command != "fit":
                rank_zero_info(
                    f"no --ckpt_path: this {self.command} uses an untrained adapter; "
                    "--ckpt_path best is the trained one"
                )
            return None
        folder = root / "checkpoints"
        path = folder / f"{name}.ckpt" if name in ("last", "best") else Path(name)
        if existing_folder(path).exists():
            return str(path)
        if name == "last" and self.command == "fit":
            rank_zero_info(f"there is no {path} yet: starting from the beginning")
            return None
        there = sorted(str(p) for p in folder.glob("*.ckpt"))
        raise ValueError(
            f"--ckpt_path {name}: there is no {path}; "
            + (f"there are: {', '.join(there)}" if there else f"{folder} holds no checkpoint")
        )

    # ---- building ------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Build data, module and trainer; a value that a constructor refuses is one line."""
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException, ModuleNotFoundError) as error:
            raise ValueError(one_line(innermost(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        trainer = self.config_init[self.command].trainer
        if trainer.logger in (None, True):
            root = trainer.default_root_dir
            csv = CSVLogger(root, name="logs")
            kwargs["logger"] = [csv, TensorBoardLogger(root, name="logs", version=csv.version)]
        return super().instantiate_trainer(**kwargs)

    # ---- running -------------------------------------------------------------------------------

    def predict(self, datamodule: SFTDataModule, **kwargs: Any) -> None:
        """Write each row of ``data.predict`` with its answer to ``predictions.jsonl``."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"predict runs in one process, got {self.trainer.world_size}; "
                "give --trainer.devices 1"
            )
        batches: Any = self.trainer.predict(datamodule=datamodule, **kwargs)
        answers = sorted((a for batch in batches for a in batch), key=lambda a: a["index"])
        path = Path(self.trainer.default_root_dir) / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as out:
            for answer in answers:
                row = datamodule.predict_records[answer["index"]] | {"prediction": answer["text"]}
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        rank_zero_info(f"{len(answers)} answers are in {path}")
