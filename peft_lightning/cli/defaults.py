"""Defaults of the trainer commands that follow from options: learning rate and adapter."""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.adapters import Adapter
from peft_lightning.cli.class_lookup import find_class
from peft_lightning.messages import UserError
from peft_lightning.training.loggers import mlflow_store
from peft_lightning.training.run_defaults import TRAINER_DEFAULTS
from peft_lightning.training.trainer import LIGHTNINGS
from peft_lightning.training.warm_start import adapter_to_continue, conflict


def take_class_defaults(model: Namespace, given: Namespace) -> None:
    """Give a class that the user names its own defaults, not those of the class it replaces.

    The parser hands on what two classes have under one name: MiSS would get the rank of the LoRA
    that is the default.

    Args:
        model: The module's arguments; changed in place.
        given: Those of them that the user gave.
    """
    for name, chosen in vars(given).items():
        path = getattr(chosen, "class_path", None)
        arguments = getattr(model.get(name), "init_args", None)
        if path is None or not arguments:
            continue
        module, _, leaf = path.rpartition(".")
        kind = getattr(sys.modules.get(module), leaf, None)  # imported to be parsed
        known = inspect.signature(kind).parameters if kind else {}
        own = getattr(chosen, "init_args", None) or Namespace()
        for key in vars(arguments).keys() - vars(own).keys() & known.keys():
            default = _default_of(kind, key, known[key].default)
            if arguments[key] != default:  # 32.0, as it is parsed, stays 32.0
                arguments[key] = default


def _default_of(kind: Any, name: str, default: Any) -> Any:
    made = (
        {field.name: field.default_factory for field in fields(kind)} if is_dataclass(kind) else {}
    )
    factory = made.get(name, MISSING)
    return default if factory is MISSING else factory()


def fill_learning_rate(model: Namespace, given: Namespace) -> None:
    """Give the optimizer the learning rate of the module or the adapter, unless it has its own.

    Otherwise an optimizer without ``lr`` would train at the default of its class.

    Args:
        model: The module's arguments, with an optimizer; changed in place.
        given: Those of them that the user gave.

    Raises:
        UserError: If both the module and the optimizer are given a learning rate.
    """
    arguments = model.optimizer.init_args
    if "lr" not in arguments:
        return
    if given.get("optimizer.init_args.lr") is not None:
        if model.learning_rate is not None:
            raise UserError(
                f"two learning rates: model.learning_rate is {model.learning_rate} and "
                f"model.optimizer.init_args.lr is {arguments.lr}; leave one out"
            )
    elif model.learning_rate is not None:
        # moved, not copied, so that the saved config.yaml does not hold two
        arguments.lr, model.learning_rate = model.learning_rate, None
    else:
        adapter: Any = find_class(model.adapter.class_path, (Adapter,))
        arguments.lr = adapter.learning_rate


def take_back_defaults(trainer: Namespace, given: Namespace | None) -> None:
    """Give a barebones Trainer Lightning's defaults for ours, which it would refuse.

    Args:
        trainer: The Trainer's arguments; changed in place.
        given: Those of them that the user gave.
    """
    for name in TRAINER_DEFAULTS.keys() - vars(given or Namespace()).keys():
        trainer[name] = LIGHTNINGS[name]


def fill_loggers(logger: Any, root: Path) -> None:
    """Give MLflow and Comet a place in the run's folder; their constructors need it already.

    Args:
        logger: The option of the Trainer; changed in place.
        root: The run's folder.
    """
    for one in logger if isinstance(logger, list) else [logger]:
        kind = str(getattr(one, "class_path", "")).rpartition(".")[2]
        if kind == "CometLogger" and "COMET_OFFLINE_DIRECTORY" not in os.environ:
            folder = root.resolve() / "comet"
            folder.mkdir(parents=True, exist_ok=True)
            os.environ["COMET_OFFLINE_DIRECTORY"] = str(folder)
        elif kind == "MLFlowLogger":
            options = one.init_args
            if options.tracking_uri is None and options.save_dir == "./mlruns":
                for name, value in mlflow_store(root).items():
                    options[name] = options[name] or value


def fill_adapter(model: Namespace, given: Namespace | None, checkpoint: str | None) -> None:
    """Set ``model.adapter`` to the adapter of ``model.init_from``, for the saved config.yaml.

    Args:
        model: The module's arguments, with ``init_from``; changed in place.
        given: Those of them that the user gave.
        checkpoint: The checkpoint to load. Its adapter is used if the folder of ``init_from`` was
            removed since the start of the run.

    Raises:
        UserError: If there is no such adapter, or the user gave an adapter of another type.
    """
    try:
        _, own = adapter_to_continue(model.init_from)
    except ValueError as error:
        if checkpoint is None:
            raise
        rank_zero_info(f"{error}; the adapter is that of {checkpoint}")
        model.init_from = checkpoint
        _, own = adapter_to_continue(checkpoint)
    name = type(own).__name__
    if given is None or given.get("adapter") is None:
        path = f"{type(own).__module__}.{name}"
        model.adapter = Namespace(class_path=path, init_args=Namespace(own.options()))
    elif (configured := model.adapter.class_path.rpartition(".")[2]) != name:
        raise UserError(conflict(configured, model.init_from, own))
