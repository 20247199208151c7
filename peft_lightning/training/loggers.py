"""The loggers of a run: CSV and TensorBoard beside all others, and all of them below its folder."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

LOCAL = (CSVLogger, TensorBoardLogger)


def loggers_of_run(given: Any, root: str) -> Any:
    """Return the loggers of a run.

    Args:
        given: As the Trainer takes them. A logger or several come before those of CSV and
            TensorBoard, unless one of these two is among them; False or an empty list is for none.
        root: The run's folder.
    """
    if given is False:
        return False
    if given is None or given is True:
        return default_loggers(root)
    loggers = [given] if isinstance(given, Logger) else list(given)
    for logger in loggers:
        keep_below(logger, root)
    if loggers and not any(isinstance(logger, LOCAL) for logger in loggers):
        loggers += default_loggers(root)
    return loggers


def default_loggers(root: str) -> list[Logger]:
    """Return a CSV and a TensorBoard logger that write to ``<root>/logs/version_<n>``."""
    csv = CSVLogger(root, name="logs")
    board = TensorBoardLogger(root, name="logs", version=csv.version, default_hp_metric=False)
    return [csv, board]


def keep_below(logger: Any, root: str) -> None:
    """Let a logger that was given no folder write to the run's, not to the working directory.

    What it has begun already stays where it is.
    """
    if isinstance(logger, WandbLogger):
        if logger._save_dir == "." and logger._experiment is None:
            folder = os.environ.get("WANDB_DIR", root)
            with suppress(OSError):  # W&B would take a temporary folder for one that is not there
                Path(folder).mkdir(parents=True, exist_ok=True)
            logger._save_dir = logger._wandb_init["dir"] = folder
    elif isinstance(logger, MLFlowLogger):
        if logger._tracking_uri == "file:./mlruns" and not logger._initialized:
            from mlflow.tracking import MlflowClient

            logger._tracking_uri = f"file:{Path(root).resolve()}/mlruns"
            logger._mlflow_client = MlflowClient(logger._tracking_uri)
    elif hasattr(logger, "default_folder"):  # ours
        logger.default_folder = root
    elif type(logger).__name__ == "AimLogger" and logger._repo_path is None:
        with suppress(OSError):
            Path(root).mkdir(parents=True, exist_ok=True)
        logger._repo_path = root


def mlflow_store(root: Path) -> dict[str, str]:
    """Return the options of an ``MLFlowLogger`` for a database in the run's folder.

    The default of Lightning's, files, is refused by MLflow from release 3.6 on.
    """
    folder = root.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    artifacts = f"file:{folder}/mlartifacts"
    return {"tracking_uri": f"sqlite:///{folder}/mlflow.db", "artifact_location": artifacts}
