"""Learning-rate schedules: warm-up, then cosine, linear or constant."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peft_lightning.messages import UserError


@dataclass(frozen=True)
class Schedule(ABC):
    """Factor on the learning rate as a function of the optimizer step.

    The first step already trains: with ``w`` warm-up steps the factors are 1/w, 2/w, ..., 1.

    Args:
        warmup: Warm-up, as a share of all optimizer steps if below 1, else as a number of steps.

    Raises:
        UserError: If ``warmup`` is negative, or a number of steps that is not whole.
    """

    warmup: float = 0.03

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.warmup >= 1 and self.warmup != int(self.warmup)):
            raise UserError(
                f"warmup must be a share of the steps in [0, 1) or a number of steps, "
                f"got {self.warmup}"
            )

    def factor(self, step: int, total: int) -> float:
        """Return the factor for optimizer step ``step``, counted from 0, of ``total`` steps."""
        warmup = math.ceil(self.warmup * total) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(1, total - warmup)
        return self.after_warmup(min(1.0, progress))

    def needs_total(self) -> bool:
        """Whether the factors depend on the number of steps of the run."""
        return True

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1] of the steps that follow the warm-up."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """Warm-up, then half a cosine from 1 down to ``final``.

    Args:
        warmup: Warm-up, as a share of all optimizer steps if below 1, else as a number of steps.
        final: Factor that the last step approaches.
    """

    final: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Linear(Schedule):
    """Warm-up, then a straight line from 1 down to ``final``.

    Args:
        warmup: Warm-up, as a share of all optimizer steps if below 1, else as a number of steps.
        final: Factor that the last step approaches.
    """

    final: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.final) * progress


@dataclass(frozen=True)
class Constant(Schedule):
    """Warm-up, then the full learning rate.

    Args:
        warmup: Warm-up, as a share of all optimizer steps if below 1, else as a number of steps.
    """

    warmup: float = 0.0

    def needs_total(self) -> bool:
        return 0 < self.warmup < 1

    def after_warmup(self, progress: float) -> float:
        return 1.0


class ScheduledLR(LRScheduler):
    """Applies a ``Schedule`` to an optimizer; the configuration wins over a saved state.

    Only the step is restored from a checkpoint. Rates follow from it and from the optimizer's
    configured ``initial_lr``, so a resumed run with another rate or length uses the new one.

    Args:
        optimizer: Its groups' ``lr`` at this moment are the rates that the factors act on.
        schedule: The factor as a function of the step: a ``Schedule``, or what has its methods.
        total_steps: Optimizer steps of the whole run, from which shares and progress are taken;
            infinite where only the time is limited.

    Attributes:
        planned_steps: ``total_steps`` as given.

    Raises:
        UserError: If it is infinite and the schedule needs it.
    """

    def __init__(self, optimizer: Optimizer, schedule: Any, total_steps: float) -> None:
        self.schedule = schedule
        self.total_steps = self._limited(total_steps)
        self.planned_steps = total_steps
        super().__init__(optimizer)

    def _limited(self, total_steps: float) -> int:
        if total_steps == math.inf and self.schedule.needs_total():
            raise UserError(
                f"{self.schedule} needs the number of steps, and nothing limits it: give "
                "trainer.max_steps, or trainer.max_epochs if the training loader has a length "
                "(with trainer.max_time too, what comes first ends the run), or model.lr_schedule "
                "Constant with warmup 0 or a number of steps"
            )
        return 1 if total_steps == math.inf else max(1, int(total_steps))

    def replan(self, rates: list[float] | None, total_steps: float) -> None:
        """Go on at the same step with other rates or another number of steps.

        Args:
            rates: The rate of each group of the optimizer that the factors act on; None for those
                of before.
            total_steps: As for the class.

        Raises:
            UserError: As for the class.
        """
        self.total_steps, self.planned_steps = self._limited(total_steps), total_steps
        if rates is not None:
            self.base_lrs = list(rates)
        self.load_state_dict(self.state_dict())

    def get_lr(self) -> list[float]:  # type: ignore[override]
        factor = self.schedule.factor(self.last_epoch, self.total_steps)
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:  # that were added since
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        return [float(base) * factor for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = self._step_count = state_dict["step"]
        self._step_count += 1
        self._last_lr: list[Any] = self.get_lr()
        for group, base, lr in zip(
            self.optimizer.param_groups, self.base_lrs, self._last_lr, strict=True
        ):
            group["initial_lr"], group["lr"] = base, lr
