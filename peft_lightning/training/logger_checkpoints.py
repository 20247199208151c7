"""Uploads of checkpoints by loggers: Lightning's loggers take files, and ours are folders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from torch import Tensor

_SETTINGS = (
    *("monitor", "mode", "save_last", "save_top_k", "save_weights_only"),
    *("_every_n_train_steps", "_every_n_val_epochs"),
)


class UploadCheckpoints(Callback):
    """Lets ``log_model`` of W&B's and MLflow's loggers upload checkpoints that are folders.

    When they are uploaded is left to Lightning: at a run's end, or with ``"all"`` at each save.
    """

    def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
        for logger in trainer.loggers:
            upload = _wandb if isinstance(logger, WandbLogger) else _mlflow
            if isinstance(logger, WandbLogger | MLFlowLogger):
                # the method that Lightning calls, of this object only
                logger._scan_and_log_checkpoints = functools.partial(  # type: ignore[method-assign]
                    _upload_new, logger, upload
                )


Upload = Callable[[Any, Path, list[str], dict[str, Any]], None]


def _upload_new(logger: Any, upload: Upload, callback: ModelCheckpoint) -> None:
    """Upload the checkpoints of a callback that are new since the last upload, oldest first."""
    scores = {callback.last_model_path: callback.current_score}
    scores |= {callback.best_model_path: callback.best_model_score, **callback.best_k_models}
    times = {path: Path(path).stat().st_mtime for path in scores if path and Path(path).exists()}
    for path in sorted(times, key=lambda path: (times[path], path)):
        if logger._logged_model_time.get(path, -1) >= times[path]:
            continue
        score = scores[path]
        settings = {k: getattr(callback, k) for k in _SETTINGS if hasattr(callback, k)}
        metadata = {
            "score": score.item() if isinstance(score, Tensor) else score,
            "original_filename": Path(path).name,
            callback.__class__.__name__: settings,
        }
        aliases = ["latest", "best"] if path == callback.best_model_path else ["latest"]
        upload(logger, Path(path), aliases, metadata)
        logger._logged_model_time[path] = times[path]


def _wandb(logger: WandbLogger, path: Path, aliases: list[str], metadata: dict[str, Any]) -> None:
    """Log an artifact with the checkpoint as ``model.ckpt``, as Lightning's files are called."""
    import wandb

    if not logger._checkpoint_name:
        logger._checkpoint_name = f"model-{logger.experiment.id}"
    artifact = wandb.Artifact(name=logger._checkpoint_name, type="model", metadata=metadata)
    add: Any = artifact.add_dir if path.is_dir() else artifact.add_file
    add(str(path), name="model.ckpt", policy=logger.add_file_policy)
    logger.experiment.log_artifact(artifact, aliases=aliases)


def _mlflow(logger: MLFlowLogger, path: Path, aliases: list[str], metadata: dict[str, Any]) -> None:
    """Log the checkpoint in a folder of its name, beside what Lightning says of it there."""
    run, place = logger.run_id, path.stem
    if path.is_dir():
        logger.experiment.log_artifacts(run, str(path), f"{place}/{path.name}")
    else:
        logger.experiment.log_artifact(run, str(path), place)
    logger.experiment.log_dict(run, metadata, f"{place}/metadata.yaml")
    logger.experiment.log_text(run, str(aliases), f"{place}/aliases.txt")
