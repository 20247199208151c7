"""AdapterCheckpoint: which checkpoints a run keeps, and when they are saved."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.messages import UserError, check_choice
from peft_lightning.process.signals import STOP
from peft_lightning.training.checkpoint_io import LAST
from peft_lightning.training.cluster.fsdp2 import fingerprint
from peft_lightning.training.hub_upload import HubUpload
from peft_lightning.training.kept_checkpoints import KeptCheckpoints
from peft_lightning.training.step_progress import (
    at_step_boundary,
    validation_due,
    validation_follows,
    within_epoch,
)

LESS_IS_BETTER = {"loss", "nll", "perplexity", "ppl", "error", "wer", "cer", "mse", "mae", "rmse"}
LESS_IS_BETTER |= {"bits"}
MORE_IS_BETTER = {"accuracy", "acc", "f1", "match", "em", "bleu", "rouge", "rouge1", "rouge2"}
MORE_IS_BETTER |= {"rougel", "meteor", "precision", "recall", "auc", "auroc", "score", "reward"}
MORE_IS_BETTER |= {"chrf", "mcc", "r2", "contains"}


class AdapterCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which a run continues bit for bit, and ``best.ckpt``.

    The ``last.ckpt`` before is ``previous.ckpt``, for a disk that damages what it was given.

    Saves only between optimizer steps: a checkpoint within an accumulation window would lose
    the gradients gathered so far.

    A run that ends at ``max_steps``, in the middle of an epoch, is validated there.

    What more is kept is ``step=<n>.ckpt``; one that no rule keeps any longer is removed.

    Args:
        every_n_steps: Optimizer steps between two saves of ``last.ckpt``; it is also saved after
            each validation and at the end.
        monitor: The logged value whose best is kept as ``best.ckpt``.
        dirpath: Folder of both; ``<default_root_dir>/checkpoints`` if None.
        mode: Which of two values is better: min, max, or auto, by the name of the value.
        save_top_k: How many of the best by ``monitor`` are kept; -1 for each validation's.
        keep_last: How many of the last saves are kept; -1 for all of them.
        every_n_train_steps: Optimizer steps after which one is kept for good.
        push_to_hub: OWNER/NAME or OWNER/NAME@BRANCH to which each new ``best.ckpt`` is uploaded
            while training goes on; ``last.ckpt`` in a run without validation.

    Raises:
        UserError: If ``every_n_steps`` is no number of steps, or ``mode`` is needed.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        monitor: str = "val/loss",
        dirpath: str | None = None,
        mode: str = "auto",
        save_top_k: int = 1,
        keep_last: int = 1,
        every_n_train_steps: int | None = None,
        push_to_hub: str | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"every_n_steps must be at least 1, got {every_n_steps}")
        check_choice("mode", mode, ("auto", "min", "max"))
        mode = better(monitor) if mode == "auto" else mode
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            enable_version_counter=False,
        )
        self.kept = KeptCheckpoints(save_top_k, keep_last, every_n_train_steps, mode)
        self._step_files: set[int] = set()  # the steps whose files are there
        self.push_to_hub = push_to_hub
        self._upload: HubUpload | None = None
        self._says_what_is_missing = True
        self.every_n_steps = every_n_steps
        self._saved_step = -1
        self._saved_weights: list[torch.Tensor] | None = None
        self._state: dict[str, Any] | None = None
        self._only_validates = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).resolve() / "checkpoints")
        if self.push_to_hub and stage == "fit" and trainer.is_global_zero:
            self._upload = HubUpload(self.push_to_hub, str(pl_module.base_model_name))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "kept" in state_dict:
            self._step_files = self.kept.load_state_dict(state_dict["kept"])

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find out whether all that is left to do is the validation of the last step."""
        validated = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
        is_due = validated["started"] > validated["processed"]
        self._only_validates = is_due and checkpoint["global_step"] == trainer.max_steps

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._only_validates:  # Lightning would end at once, before ``on_train_start``
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._only_validates:
            return
        self._only_validates = False
        loop = trainer.fit_loop.epoch_loop
        loop.max_steps -= 1
        loop.val_loop.restarting = False
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        trainer.fit_loop.epoch_progress.increment_processed()  # so Lightning counts a cut epoch
        trainer.fit_loop.epoch_progress.increment_completed()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        if self._is_due(trainer) and not validation_follows(trainer):
            self.save_now(trainer)
        # Lightning then validates before it ends, for best.ckpt
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._is_due(trainer) and trainer.global_step != trainer.max_steps:
            self.save_now(trainer)

    def _is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        is_due = step % self.every_n_steps == 0 or self.kept.is_due(step)
        return is_due and at_step_boundary(trainer)

    def on_validation_end(self, trainer: Any, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.fast_dev_run:
            return
        if at_step_boundary(trainer):
            candidates = self._monitor_candidates(trainer)
            with STOP.held():  # both are of this validation
                best = self.best_model_score
                if self.monitor in candidates:
                    self.kept.add_score(trainer.global_step, float(candidates[self.monitor]))
                    self._save_topk_checkpoint(trainer, candidates)
                elif self._says_what_is_missing:
                    self._says_what_is_missing = False
                    logged = ", ".join(sorted(candidates.keys() - {"epoch", "step"}))
                    rank_zero_info(
                        f"no best.ckpt is kept: {self.monitor} was not logged in the validation; "
                        f"log it, or name another as monitor of AdapterCheckpoint: {logged}"
                    )
                self._saved_step = -1  # the best score so far belongs to the state
                self.save_now(trainer, validated=True)
            if self.best_model_score is not best:
                self._push(self.best_model_path, trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave ``last.ckpt`` as validation or the last step left it: before the epoch's end."""

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Save the end of the run, also where a callback has changed the last step's weights."""
        if self._saved_weights is not None:
            now = [fingerprint(p) for p in pl_module.trainable_parameters()]
            if not all(map(torch.equal, now, self._saved_weights)):
                self._saved_step = -1
        with within_epoch(trainer):
            self.save_now(trainer)
        if self.best_model_score is None:
            self._push(self.last_model_path, trainer)
        if self._upload is not None:
            self._upload.finish()

    def _push(self, checkpoint: str, trainer: L.Trainer) -> None:
        if self._upload is not None and Path(checkpoint).is_dir():
            self._upload.push(Path(checkpoint), f"Step {trainer.global_step}")

    def _step_file(self, step: int) -> str:
        return str(Path(str(self.dirpath)) / f"step={step}.ckpt")

    def save_now(
        self, trainer: Any, validated: bool = False, state: dict[str, Any] | None = None
    ) -> None:
        """Save ``last.ckpt`` now, unless this step is saved already.

        Args:
            trainer: After an optimizer step, perhaps within the validation behind it.
            validated: Whether that validation is over; if not, a resumed run begins with it.
            state: Of the moment after the last optimizer step, by ``step_boundary``, if it is
                over: the checkpoint is of that moment.
        """
        if self._saved_step == trainer.global_step or trainer.fast_dev_run:
            return
        self._saved_step = trainer.global_step
        self._saved_weights = [
            fingerprint(p) for p in trainer.lightning_module.trainable_parameters()
        ]
        assert self.dirpath is not None
        self.last_model_path = str(Path(self.dirpath) / LAST)
        within_validation = trainer.validating and not validated
        self._state = state
        step = trainer.global_step
        self.kept.add(step)
        try:
            with STOP.held(), validation_due(trainer) if within_validation else nullcontext():
                if step in self.kept.steps:
                    self._save_checkpoint(trainer, self._step_file(step))
                self._save_checkpoint(trainer, self.last_model_path)
                for gone in self._step_files - self.kept.steps:  # last.ckpt counts on none
                    trainer.strategy.remove_checkpoint(self._step_file(gone))
                self._step_files = self.kept.steps
        finally:
            self._state = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a checkpoint that is saved within a step be of the moment before it."""
        state = dict(self._state or {})
        checkpoint["loops"].update(state.pop("loops", {}))
        checkpoint["state_dict"].update(state.pop("buffers", {}))
        checkpoint.update(state)


def better(monitor: str) -> str:
    """Return min or max, as the name of a logged value tells which is better.

    Raises:
        UserError: If it does not tell.
    """
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    is_less, is_more = bool(words & LESS_IS_BETTER), bool(words & MORE_IS_BETTER)
    if is_less == is_more:
        raise UserError(
            f"whether a smaller or a larger {monitor} is better is not known: give "
            "AdapterCheckpoint mode min or max"
        )
    return "min" if is_less else "max"
