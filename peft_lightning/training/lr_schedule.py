"""What ``model.lr_schedule`` may be, and the plan of a run's learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback, Checkpoint
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from peft_lightning.messages import UserError, did_you_mean, join_or
from peft_lightning.training.planned_steps import planned_steps
from peft_lightning.training.schedules import Constant, Cosine, Linear, Schedule, ScheduledLR
from peft_lightning.training.torch_schedules import (
    PlateauSteps,
    TorchSchedule,
    class_of,
    given_peak,
    name_of,
)

SchedulerFactory = Callable[[Optimizer], LRScheduler]
if TYPE_CHECKING:
    LRScheduleOption = Schedule | type | str | Callable[..., Any]
else:  # what a config can name
    LRScheduleOption = Schedule | SchedulerFactory | Callable[[int], float]

DEFAULT_SCHEDULE = Cosine()
_BY_NAME: dict[str, type[Schedule]] = {c.__name__: c for c in (Cosine, Linear, Constant)}


@dataclass(frozen=True)
class StepFunction:
    """A function of the user's from a step, counted from 0, to a factor on the learning rate."""

    function: Callable[[int], float]

    def factor(self, step: int, total: int) -> float:
        """Return the factor for ``step``.

        Raises:
            UserError: If it is no number from 0 up.
        """
        value = self.function(step)
        if not _is_number(value) or not 0 <= float(value) < math.inf:
            raise UserError(
                f"model.lr_schedule {name_of(self.function)} must return a factor of 0 or more, "
                f"got {value!r:.80} at step {step}"
            )
        return float(value)

    def needs_total(self) -> bool:
        """Whether the factors depend on the number of steps of the run."""
        return False


def make_schedule(
    optimizer: Optimizer, option: Any, trainer: Any, requested: float | None
) -> ScheduledLR | TorchSchedule:
    """Return the schedule of a run, which ``trainer`` is to step at each optimizer step.

    Args:
        optimizer: At its full rates.
        option: A ``Schedule``, its class or name; a scheduler of torch, as a class or as a function
            from an optimizer; or a function from a step to a factor.
        trainer: Its limits decide the steps; gets the callbacks that the schedule needs.
        requested: The learning rate that the user asked for; None if nobody did.

    Raises:
        UserError: If ``option`` is something else, or needs steps that nothing limits.
    """
    schedule: Any = _resolved(option)
    callbacks: list[Callback] = [SchedulePlan()]
    total = planned_steps(trainer)
    made: ScheduledLR | TorchSchedule
    if isinstance(schedule, Schedule | StepFunction):
        made = ScheduledLR(optimizer, schedule, total)
    else:
        peak = given_peak(schedule)
        if None not in (peak, requested) and peak != requested:
            raise UserError(
                f"two learning rates: model.learning_rate is {requested} and max_lr of "
                f"{name_of(schedule)} is {peak}; leave one out"
            )
        made = TorchSchedule(optimizer, schedule, total)
        callbacks.append(PlateauSteps())
    for callback in callbacks:
        add_before_checkpoints(trainer, callback)
    return made


def _resolved(option: Any) -> Any:
    """Return a ``Schedule``, a ``StepFunction``, or a factory of torch's schedulers."""
    if isinstance(option, str):
        if option not in _BY_NAME:
            raise UserError(
                f"there is no lr_schedule {option!r}; there are {join_or(list(_BY_NAME))}, the "
                f"schedulers of torch and functions of the step{did_you_mean(option, _BY_NAME)}"
            )
        return _BY_NAME[option]()
    if isinstance(option, type) and issubclass(option, Schedule):
        return option()
    if isinstance(option, Schedule) or class_of(option) is not None:
        return option
    if isinstance(option, LRScheduler):
        name = type(option).__name__
        raise UserError(
            f"lr_schedule is a {name} of another optimizer: give its class, or functools.partial("
            f"{name}, ...) with its options, as the run makes its optimizer itself"
        )
    if not callable(option):
        raise UserError(
            f"lr_schedule must be Cosine(), a class of torch's schedulers or a function of the "
            f"step, got {option!r:.80}"
        )
    try:
        value = option(0)
    except Exception:  # torch's schedulers refuse a number in their own words
        return option
    return StepFunction(option) if _is_number(value) else option


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str)


def add_before_checkpoints(trainer: Any, callback: Callback) -> None:
    """Add a callback to a trainer that has none of its class, where checkpoints come after it."""
    if not any(type(c) is type(callback) for c in trainer.callbacks):
        places = [i for i, c in enumerate(trainer.callbacks) if isinstance(c, Checkpoint)]
        trainer.callbacks.insert(min(places, default=len(trainer.callbacks)), callback)


class SchedulePlan(Callback):
    """Plans the learning rates anew after a tuner has changed the batch size or the rate.

    ``LearningRateFinder`` and ``BatchSizeFinder`` run after the optimizer is made: the schedule
    would go back to the rate of before, and end too late.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        replan(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        replan(trainer, pl_module)


def replan(trainer: Any, module: Any) -> None:
    """Let the schedule follow ``module.learning_rate`` and the steps that the run will make."""
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, ScheduledLR | TorchSchedule):
            continue
        total, rates = planned_steps(trainer), None
        if module.learning_rate != module.planned_learning_rate:
            rates = [float(module.learning_rate)] * len(schedule.base_lrs)
        if rates is not None or total != schedule.planned_steps:
            schedule.replan(rates, total)
        module.planned_learning_rate = module.learning_rate
