"""Overfitting, said when it is seen: the validation loss has risen by more than its noise."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.history import History

LEAST_RISE = 0.01  # of the loss: less changes no answer that anybody would see
GROUPS = 200  # of validation batches, of which a checkpoint keeps the sums
# Student's t of 1, 2, 3, ... degrees of freedom that one in 200 exceeds by chance
_QUANTILES = [63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25, 3.17, 3.11, 3.05]


class OverfittingNotice(Callback):
    """Says once that ``val/loss`` rises: it is above its minimum by more than the noise.

    The noise is that of the rows that happened to be held out. Both validations were of the same
    batches, so the standard error is that of their differences, which the rows' own difficulty does
    not widen. The rise is said if it is as many standard errors as one in 200 such differences is
    by chance (3.05 and more), and at least 1 % of the loss, as a step more or less moves it too.

    ``python scripts/benchmarks/overfitting.py`` measures how often a run that does not overfit is
    told so.
    """

    def __init__(self) -> None:
        self._best: Tensor | None = None  # nats and tokens of each group of batches, (G, 2)
        self._step = 0
        self._is_said = False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "step": self._step, "is_said": self._is_said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._step = state_dict["best"], state_dict["step"]
        self._is_said = state_dict["is_said"]

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        now = _groups(_of_all_processes(pl_module.evaluation.take_batches()))
        if now is None or self._is_said:
            return
        if self._best is None or _mean(now) < _mean(self._best):
            self._best, self._step = now, trainer.global_step
            return
        rise, error = rise_and_error(self._best, now)
        if rise > _threshold(len(now)) * error and rise > LEAST_RISE * _mean(self._best):
            self._is_said = True
            self._say(trainer, _mean(now), rise, error)

    def _say(self, trainer: Any, loss: float, rise: float, error: float) -> None:
        assert self._best is not None
        text = (
            f"the run overfits: val/loss is {loss:.4g}, {rise:.2g} above its minimum of step "
            f"{self._step}, and its standard error is {error:.1g}"
        )
        if any(isinstance(callback, AdapterCheckpoint) for callback in trainer.callbacks):
            text += "; best.ckpt is of the best validation"
        if not any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks):
            text += (
                "; to end such a run there, give --trainer.callbacks+=EarlyStopping "
                "--trainer.callbacks.monitor=val/loss, or train fewer epochs"
            )
        rank_zero_info(text)
        history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
        if history is not None:
            numbers = {"val/loss": loss, "rise": rise, "standard_error": error}
            history.warn(trainer, text, **numbers)


def rise_and_error(before: Tensor, now: Tensor) -> tuple[float, float]:
    """Return by how much the mean loss per token has risen, and the standard error of that.

    Args:
        before: Nats and tokens of each group of validation batches, (G, 2) float64.
        now: The same of a later validation. Where its tokens are the same, the groups are pairs,
            and the error is that of a ratio of sums over them (Cochran 1977, section 2.11);
            otherwise the errors of both means are added as those of independent ones.

    Returns:
        Both in nats per token; the error is infinite for a single group.
    """
    rise = _mean(now) - _mean(before)
    if len(now) == len(before) and torch.equal(now[:, 1], before[:, 1]):
        difference = torch.stack([now[:, 0] - before[:, 0], now[:, 1]], 1)
        return rise, _error(difference)
    return rise, (_error(before) ** 2 + _error(now) ** 2) ** 0.5


def _error(groups: Tensor) -> float:
    """Return the standard error of the mean per token over groups."""
    count = len(groups)
    if count < 2:
        return float("inf")
    left = groups[:, 0] - _mean(groups) * groups[:, 1]
    spread = left.square().sum() * count / (count - 1)
    return float(spread.sqrt() / groups[:, 1].sum())


def _mean(groups: Tensor) -> float:
    return float(groups[:, 0].sum() / groups[:, 1].sum())


def _threshold(groups: int) -> float:
    return _QUANTILES[min(max(groups - 1, 1), len(_QUANTILES)) - 1]


def _groups(batches: Tensor) -> Tensor | None:
    """Return the sums over at most ``GROUPS`` groups of batches; None if there are no tokens."""
    batches = batches[batches[:, 1] > 0]
    if not len(batches):
        return None
    parts = [part.sum(0) for part in batches.tensor_split(min(GROUPS, len(batches)))]
    return torch.stack(parts)


def _of_all_processes(batches: Tensor) -> Tensor:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return batches
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, batches)
    return torch.cat(found)
