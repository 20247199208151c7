"""The loggers of a run: CSV and TensorBoard beside all others, and all of them below its folder."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable
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
from lightning.pytorch.utilities.rank_zero import rank_zero_info

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
        if isinstance(logger, LOCAL):
            _go_on_without(logger)
    if loggers and not any(isinstance(logger, LOCAL) for logger in loggers):
        loggers += default_loggers(root)
    return loggers


def default_loggers(root: str) -> list[Logger]:
    """Return a CSV and a TensorBoard logger that write to ``<root>/logs/version_<n>``."""
    csv = CSVLogger(root, name="logs")
    board = TensorBoardLogger(root, name="logs", version=csv.version, default_hp_metric=False)
    _go_on_without(csv, board)
    _hush_writers()
    return [csv, board]


def _hush_writers() -> None:
    """Keep the traceback of TensorBoard's writing thread from the screen; its logger says it."""
    earlier = threading.excepthook

    def hook(what: threading.ExceptHookArgs) -> None:
        if not (isinstance(what.exc_value, OSError) and "tensorboard" in str(_last_file(what))):
            earlier(what)

    threading.excepthook = hook


def _last_file(what: threading.ExceptHookArgs) -> str | None:
    steps = traceback.extract_tb(what.exc_traceback)
    return steps[-1].filename if steps else None


def _go_on_without(*loggers: Any) -> None:
    """Let training go on where files of loggers cannot be written; that is said once.

    A folder that was removed is made again.
    """
    said: list[str] = []

    def guarded(logger: Any, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                try:
                    return method(*args, **kwargs)
                except FileNotFoundError:
                    Path(logger.log_dir).mkdir(parents=True, exist_ok=True)
                    return method(*args, **kwargs)
            except OSError as error:
                if not said:
                    said.append(str(error.strerror or error))
                    rank_zero_info(
                        f"{logger.log_dir} cannot be written: {said[0]}; training goes on, and "
                        "what is logged meanwhile is lost there"
                    )

        return call

    for logger in loggers:
        for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
            setattr(logger, name, guarded(logger, getattr(logger, name)))


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
