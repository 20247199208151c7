"""What loggers get of a run's configuration: model, data, trainer and optimizer, readable."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from peft_lightning.hyperparameters import (
    IMPORT_PATH,
    PlainHyperparameters,
    plain,
    without_secrets,
)
from peft_lightning.messages import shortened

METRICS = ("val/loss", "train/loss")  # columns of TensorBoard's HPARAMS tab
OF_TRAINER = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "precision", "num_devices", "num_nodes"),
    *("limit_train_batches", "limit_val_batches", "overfit_batches", "val_check_interval"),
    *("check_val_every_n_epoch",),
)
_OF_NO_INTEREST = {"params", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
_NAME = re.compile(r"[\w.-]+")
_LONGEST = 250  # characters of a parameter that Lightning gives to MLflow


class LogHyperparameters(Callback):
    """Gives a run's hyperparameters to each logger, once, before anything else is logged.

    ``enable_autolog_hparams=False`` of the trainer switches it off, and
    ``save_hyperparameters(logger=False)`` of a module or its data their part.
    """

    def __init__(self) -> None:
        self._given: set[int] = set()  # ids of the loggers that have them

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            self._log(trainer, again=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log, with the optimizer that there is by now, before Lightning saves the loggers."""
        self._log(trainer)

    def _log(self, trainer: Any, again: bool = True) -> None:
        if not trainer.enable_autolog_hparams or not trainer.is_global_zero:
            return
        loggers = [x for x in trainer.loggers if again or id(x) not in self._given]
        self._given |= {id(logger) for logger in loggers}
        values = run_hyperparameters(trainer) if loggers else {}
        for logger in loggers:
            _give(logger, values)


def run_hyperparameters(trainer: Any) -> dict[str, Any]:
    """Return the hyperparameters of a run as nested plain values without secrets.

    Returns:
        ``model`` and ``data``, the arguments of their constructors, with their class; ``trainer``;
        while training ``optimizer``, with the rates that the schedule acts on. Dataclasses are
        their class's name and their fields: ``{"class": "LoRA", "r": 16, ...}``.
    """
    found: dict[str, Any] = {}
    for name, part in (("model", trainer.lightning_module), ("data", trainer.datamodule)):
        if isinstance(part, PlainHyperparameters) and part.logs_hyperparameters:
            found[name] = {"class": type(part).__name__, **part.hparams}
    found["trainer"] = {name: getattr(trainer, name) for name in OF_TRAINER}
    found["trainer"] |= {
        "accelerator": trainer.strategy.root_device.type,
        "strategy": type(trainer.strategy).__name__,
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
    }
    if trainer.optimizers:
        found["optimizer"] = optimizer = _optimizer(trainer.optimizers[0])
        if found.get("model", {}).get("learning_rate", "") is None:
            found["model"]["learning_rate"] = optimizer["lr"]
    return dict(_readable(without_secrets(plain(found))))


def _optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the class of an optimizer and the options of its groups; a list where they differ."""
    groups = [{**g, "lr": g.get("initial_lr", g.get("lr"))} for g in optimizer.param_groups]
    values: dict[str, Any] = {"class": type(optimizer).__name__}
    for name in groups[0].keys() - _OF_NO_INTEREST:
        each = [plain(group.get(name)) for group in groups]
        values[name] = each[0] if all(v == each[0] for v in each) else each
    return dict(sorted(values.items()))


def _readable(value: Any) -> Any:
    """Return plain values with classes by name, and as JSON the dicts that users fill freely."""
    if isinstance(value, list):
        return [_readable(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {IMPORT_PATH}:
        return value[IMPORT_PATH]
    if value.keys() == {"class_path", "init_args"}:
        fields = value["init_args"] or {}
        return _readable({"class": value["class_path"].rpartition(".")[2], **fields})
    if not all(_NAME.fullmatch(str(name)) for name in value):
        return json.dumps(value)
    return {name: _readable(v) for name, v in value.items()}


def _give(logger: Logger, values: dict[str, Any]) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.hparams.update(values)  # for hparams.yaml, and without a metric of -1
        _fill_hparams_tab(logger, flattened(values))
    elif isinstance(logger, MLFlowLogger):
        logger.log_hyperparams(_new_to_mlflow(logger, flattened(values)))
    else:
        logger.log_hyperparams(values)


def flattened(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return nested values by names like ``model/adapter/r``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{path}/{name}" if path else str(name)
        flat |= flattened(value, place) if isinstance(value, dict) else {place: value}
    return flat


def _fill_hparams_tab(logger: TensorBoardLogger, flat: dict[str, Any]) -> None:
    """Write what TensorBoard's HPARAMS tab shows of a run: a row, with the metrics it logs."""
    from torch.utils.tensorboard.summary import hparams

    scalars = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in flat.items()}
    metrics = [*METRICS, *(["hp_metric"] if logger._default_hp_metric else [])]
    writer = logger.experiment._get_file_writer()
    for summary in hparams(scalars, dict.fromkeys(metrics, 0.0)):  # names only: no value is written
        writer.add_summary(summary)


def _new_to_mlflow(logger: MLFlowLogger, flat: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters that a run of MLflow does not have; it keeps the first values."""
    there = logger.experiment.get_run(logger.run_id).data.params
    changed = [k for k, v in flat.items() if there.get(k, short := str(v)[:_LONGEST]) != short]
    if changed:
        rank_zero_warn(
            f"MLflow keeps the parameters that its run {logger.run_id} began with; changed are "
            f"{shortened(changed)}: give MLFlowLogger no run_id for a run of its own"
        )
    return {name: value for name, value in flat.items() if name not in there}
