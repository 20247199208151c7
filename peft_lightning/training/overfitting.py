"""Overfitting, said when it is seen: the validation loss has risen by more than its noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.history import History
from peft_lightning.training.step_progress import training_ends

LEAST_RISE = 0.01  # of the loss: less changes no answer that anybody would see
RISES, FARTHER = 3, 2.0  # in a row, and how much farther than what has gone back
GROUPS = 200  # of validation batches, of which a checkpoint keeps the sums
# Student's t of 1, 2, 3, ... degrees of freedom that one in 200 exceeds by chance
_QUANTILES = [63.66, 9.92, 5.84, 4.60, 4.03, 3.71, 3.50, 3.36, 3.25, 3.17, 3.11, 3.05]


class OverfittingNotice(Callback):
    """Says once that ``val/loss`` rises, when that is seen, or that it has ended above its minimum.

    A rise counts if it is beyond two kinds of noise. That of the rows that happened to be held out:
    both validations were of the same batches, so the standard error is that of their differences,
    which the rows' own difficulty does not widen; the rise is as many of them as one in 200 such
    differences is by chance, 3.05 and more, and at least 1 % of the loss. And that of the steps,
    which move the loss up and down between validations: it has risen three times in a row, to twice
    as far above the minimum as any climb that has gone back.

    At the end of training the first is enough: then the last weights are worse than the best ones,
    whatever it was that moved them.
    """

    def __init__(self) -> None:
        self._best: Tensor | None = None  # nats and tokens of each group of batches, (G, 2)
        self._step = 0
        self._is_said = False
        self._curve = Climbs()

    def state_dict(self) -> dict[str, Any]:
        own = {"best": self._best, "step": self._step, "is_said": self._is_said}
        return {**own, "curve": vars(self._curve).copy()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best, self._step = state_dict["best"], state_dict["step"]
        self._is_said = state_dict["is_said"]
        self._curve = Climbs(**state_dict["curve"])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        now = _groups(_of_all_processes(pl_module.evaluation.take_batches()))
        if now is None or self._is_said:
            return
        self._curve.add(_mean(now))
        if self._best is None or _mean(now) < _mean(self._best):
            self._best, self._step = now, trainer.global_step
            return
        rise, error = rise_and_error(self._best, now)
        ends = training_ends(trainer)
        is_beyond_rows = rise > max(_threshold(len(now)) * error, LEAST_RISE * _mean(self._best))
        if is_beyond_rows and (ends or self._curve.is_rising(rise)):
            self._is_said = True
            self._say(trainer, _mean(now), rise, error)

    def _say(self, trainer: Any, loss: float, rise: float, error: float) -> None:
        overfits = self._curve.is_rising(rise)
        text = (
            f"{'the run overfits: val/loss is' if overfits else 'the run ends with val/loss'} "
            f"{loss:.4g}, {rise:.2g} above its minimum of step {self._step} (standard error "
            f"{error:.1g})"
        )
        if any(isinstance(callback, AdapterCheckpoint) for callback in trainer.callbacks):
            text += "; best.ckpt is of the best validation"
        if not any(isinstance(callback, EarlyStopping) for callback in trainer.callbacks):
            text += (
                "; to end such a run there, give --trainer.callbacks+=EarlyStopping "
                "--trainer.callbacks.monitor=val/loss, or train fewer epochs, or at a lower rate"
            )
        rank_zero_info(text)
        history = next((c for c in trainer.callbacks if isinstance(c, History)), None)
        if history is not None:
            numbers = {"val/loss": loss, "rise": rise, "standard_error": error}
            history.warn(trainer, text, **numbers)


@dataclass
class Climbs:
    """How a curve goes up and down.

    Attributes:
        last: Its last value; None before the first.
        rises: How often in a row it has risen.
        climb: How far, in these rises.
        returned: The furthest that it has ever risen before it fell again.
    """

    last: float | None = None
    rises: int = 0
    climb: float = 0.0
    returned: float = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        if self.last is not None and value > self.last:
            self.rises, self.climb = self.rises + 1, self.climb + value - self.last
        else:
            self.returned = max(self.returned, self.climb)
            self.rises, self.climb = 0, 0.0
        self.last = value

    def is_rising(self, rise: float) -> bool:
        """Whether ``rise`` above the minimum is more than the ups and downs so far."""
        return self.rises >= RISES and rise > FARTHER * self.returned


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
