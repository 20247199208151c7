"""The position of a run in its training rows: saved with a checkpoint, and resumed from it."""

import sys
from typing import Any

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from peft_lightning.data.batching import BatchPlan
from peft_lightning.data.lightning_progress import (
    complete_restarted_epoch,
    finished_batches,
    set_finished_batches,
)
from peft_lightning.data.loader import BatchLoader
from peft_lightning.messages import UserError

# options that change the batches of an epoch but not the order of its rows
ORDER_PRESERVING = {"batch_size", "number of ranks"}


class TrainingPosition:
    """The epoch of a run, and how many of its batches are finished.

    Args:
        plan: The training batches of each epoch.

    Attributes:
        loader: The loader of this rank, set by the DataModule once it is made.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.loader: BatchLoader | None = None
        self._resumed: tuple[int, int] | None = None  # the epoch and its finished batches
        self._renumbered: int | None = None  # the finished batches in this run's batching

    def attach(self, loader: BatchLoader) -> None:
        """Make ``loader`` start at the resumed position, if there is one."""
        self.loader = loader
        if self._resumed is not None:
            loader.resume(*self._resumed)

    def state_dict(self, trainer: Trainer | None) -> dict[str, Any]:
        """Return the epoch and the number of its finished batches.

        The loader knows how many batches it yielded, Lightning how many were trained on. The
        smaller number is exact, however far the loader reads ahead, also on the last batch and
        between epochs, where one of the two still belongs to the last epoch.
        """
        assert self.loader is not None
        finished, batches = self.loader.position, float(len(self.loader))
        if trainer is not None:
            finished = min(finished, finished_batches(trainer))
            batches = min(batches, trainer.fit_loop.max_batches)  # limit_train_batches
        epoch, skipped_rows = self.plan.resumed
        return {
            "epoch": self.loader.epoch,
            "finished_batches": finished,
            "batches_per_epoch": int(batches),
            "batching": self._batching(),
            "epoch_rows": {
                "skipped": skipped_rows if epoch == self.loader.epoch else 0,
                "limited": _is_limited(trainer),
            },
        }

    def load_state_dict(
        self,
        saved: dict[str, Any],
        now: dict[str, Any],
        allow_changed_data: bool,
        trainer: Trainer | None,
    ) -> None:
        """Resume at the position of a checkpoint, also with another batch size or number of ranks.

        Args:
            saved: The DataModule's state in the checkpoint.
            now: The fingerprint, hash and files of this run's data, as in such a state.
            allow_changed_data: As for ``resume_point``.
            trainer: The trainer of this run.

        Raises:
            UserError: As ``resume_point``.
        """
        limited = saved["epoch_rows"]["limited"] or _is_limited(trainer)
        now = now | {"batching": self._batching()}
        epoch, finished, changed = resume_point(saved, now, allow_changed_data, limited)
        skipped = saved["epoch_rows"]["skipped"]
        if finished < sys.maxsize:
            if changed:
                finished = self._renumbered = self._resume_in_other_batches(saved)
            elif skipped:
                self.plan.resume_at(epoch, skipped)
        elif now["batching"] != saved["batching"] or now["fingerprint"] != saved["fingerprint"]:
            self._renumbered = len(self.plan) // self.plan.world_size
        self._resumed = epoch, finished
        if self.loader is not None:  # made early, by trainer.estimated_stepping_batches
            self.loader.resume(*self._resumed)

    def _batching(self) -> dict[str, Any]:
        """Return the options that determine the batches of an epoch."""
        return {
            "seed": self.plan.seed,
            "batch_size": self.plan.batch_size,
            "tokens_per_batch": self.plan.tokens_per_batch,
            "shuffle": self.plan.shuffle,
            "layout": "padded" if self.plan.padded else "flat",
            "number of ranks": self.plan.world_size,
        }

    def _resume_in_other_batches(self, saved: dict[str, Any]) -> int:
        """Continue an epoch in this run's batches; return the position of the first."""
        epoch, batch_size = saved["epoch"], saved["batching"]["batch_size"]
        ranks = saved["batching"]["number of ranks"]
        old = self.plan.with_batching(batch_size, ranks)
        if skipped := saved["epoch_rows"]["skipped"]:
            old.resume_at(epoch, skipped)
        rows = old.rows_before(epoch, saved["finished_batches"])
        rank_zero_info(
            f"{rows} rows of epoch {epoch} are finished, by {ranks} process(es) in batches of"
            f" {batch_size}; the others follow in the same order, by {self.plan.world_size}"
            f" in batches of {self.plan.batch_size}"
        )
        return self.plan.resume_at(epoch, rows)

    def before_epoch(self, epoch: int, trainer: Trainer | None) -> None:
        """Correct Lightning's count of finished batches; called when it starts ``epoch``."""
        stopped, finished = self._resumed or (epoch, 0)
        self._resumed = None
        if stopped < epoch and 0 < finished < sys.maxsize:
            rank_zero_info(
                f"epoch {stopped} was stopped at batch {finished}, which Lightning takes for its"
                f" end: training continues with epoch {epoch}"
            )
        if trainer is not None:
            if self._renumbered is not None:
                set_finished_batches(trainer, self._renumbered)
            complete_restarted_epoch(trainer)
        self._renumbered = None


def resume_point(
    saved: dict[str, Any], now: dict[str, Any], allow_changed_data: bool, limited: bool
) -> tuple[int, int, bool]:
    """Compare the state of a checkpoint with this run and return where to resume.

    Args:
        saved: The DataModule's state in the checkpoint.
        now: The batching options, fingerprint, hash and files of this run, as in such a state.
        allow_changed_data: Whether the data may have changed; the epoch is then resumed at the same
            number of finished batches.
        limited: Whether an epoch has only a part of the rows, then or now.

    Returns:
        The epoch; the number of its batches that are finished, ``sys.maxsize`` if all are, because
        Lightning may return to the epoch and must find no batch left; and whether the epoch has the
        same rows in the same order but in other batches.

    Raises:
        UserError: If the data has changed or, within an epoch, an option that the order of its
            rows depends on; names the old and the new value.
    """
    data = differences(saved["fingerprint"], now["fingerprint"])
    if data and not allow_changed_data:
        inputs = differences(_inputs(saved["fingerprint"]), _inputs(now["fingerprint"]))
        data = inputs or [
            "the same files and options now give other tokens, so the chat template or the format"
            " function depends on something else, such as the day or another file"
        ]
        raise UserError(
            f"the checkpoint was made with other data: hash {saved['data_hash']:.12} of"
            f" {saved['files']}, now {now['data_hash']:.12} of {now['files']}"
            f" ({'; '.join(data)}). Give the data it was made with, or set"
            " data.allow_changed_data to true; --ckpt_path none starts a new run"
        )
    finished, batches = saved["finished_batches"], saved["batches_per_epoch"]
    old, new = saved["batching"], now["batching"]
    changes = differences(old, new)
    changed = {name for name in old if old[name] != new.get(name)}
    same_order = changed <= ORDER_PRESERVING and not data and not limited
    if changes and 0 < finished < batches and not same_order:
        why = data + ["limit_train_batches is set"] * limited
        raise UserError(
            f"the checkpoint was made within an epoch (batch {finished} of {batches}), where the"
            f" order of the rows cannot change: {'; '.join(changes + why)}. A checkpoint of an"
            " epoch's end allows it"
        )
    at = sys.maxsize if finished >= batches else finished
    return saved["epoch"], at, bool(changes) and same_order


def _inputs(fingerprint: Any) -> Any:
    """Return a fingerprint of data without the hashes of the tokens."""
    if isinstance(fingerprint, dict):
        return {k: _inputs(v) for k, v in fingerprint.items() if k != "tokens"}
    return [_inputs(f) for f in fingerprint] if isinstance(fingerprint, list) else fingerprint


def _is_limited(trainer: Trainer | None) -> bool:
    """Whether ``limit_train_batches`` leaves a part of the rows out of an epoch."""
    return getattr(trainer, "limit_train_batches", None) not in (None, 1.0)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Return the differences of two nested states, each as "name was old, is new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in old for d in differences(old[k], new.get(k), f"{name} {k}".strip())]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True), start=1)
        return [d for i, pair in pairs for d in differences(*pair, f"{name} {i}")]
    return [] if old == new else [f"{name} was {old!s:.40}, is {new!s:.40}"]
