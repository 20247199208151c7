"""Learning-rate schedules of torch: any scheduler class or factory, stepped once a step."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from peft_lightning.messages import UserError

# parameters that stand for the steps of the whole run, of torch and of transformers
_TOTALS = ("total_steps", "num_training_steps", "T_max")
_PEAK = "max_lr"
_MONITOR = "val/loss"


class TorchSchedule(LRScheduler):
    """A scheduler of torch, as ``configure_optimizers`` returns it to Lightning.

    It saves what the scheduler has changed in the optimizer, a cycled momentum for example, and
    what it was configured with: a resumed run goes on exactly, or is refused.

    Args:
        optimizer: Its groups' ``lr`` at this moment are the rates that the scheduler begins with.
        factory: A class of torch's schedulers, or a function from an optimizer to a scheduler.
        total_steps: Optimizer steps of the whole run, for a factory that takes them and was not
            given them; infinite if nothing says how many.

    Attributes:
        scheduler: The scheduler itself.
        planned_steps: ``total_steps`` as given.
        plateau_epoch: The last epoch whose value ReduceLROnPlateau was given, -1 for none.

    Raises:
        UserError: If the scheduler cannot be made.
    """

    def __init__(
        self, optimizer: Optimizer, factory: Callable[..., Any], total_steps: float
    ) -> None:
        self.optimizer, self._factory = optimizer, factory
        self._start = _hyperparameters(optimizer)
        self.planned_steps = total_steps
        self._build()

    def _build(self) -> None:
        for group, options in zip(self.optimizer.param_groups, self._start, strict=True):
            for name in group.keys() - options.keys() - {"params"}:
                del group[name]  # initial_lr, which a scheduler would begin with
            group.update(options)
        self.scheduler = _made(self._factory, self.optimizer, self.planned_steps)
        self._configured = copy.deepcopy(self.scheduler.state_dict())
        self.steps, self.plateau_epoch = 0, -1

    def replan(self, rates: list[float] | None, total_steps: float) -> None:
        """Begin again with other rates or another number of steps, before the first step.

        Args:
            rates: The rate of each group of the optimizer; None for those of before.
            total_steps: As for the class.

        Raises:
            UserError: If the schedule has begun, or has a peak of its own.
        """
        name = type(self.scheduler).__name__
        if self.steps and rates is None:
            return  # the steps of a run that goes on are those it began with
        if self.steps:
            raise UserError(f"the learning rate was changed within a run, and {name} has begun")
        if rates is not None and (peak := given_peak(self._factory)) is not None:
            raise UserError(
                f"model.lr_schedule {name} has max_lr {peak}, so learning rate {rates[0]:g} would "
                "not be used: leave max_lr out, it is then the learning rate"
            )
        if rates is not None:
            for options, rate in zip(self._start, rates, strict=True):
                options["lr"] = rate
        self.planned_steps = total_steps
        self._build()

    @property
    def base_lrs(self) -> list[float]:  # type: ignore[override]
        """The rates that the scheduler begins with, one a group."""
        return [float(options["lr"]) for options in self._start]

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """The optimizer steps so far."""
        return self.steps

    def step(self, epoch: int | None = None) -> None:
        """Set the rate of the next optimizer step; ``plateau_step`` sets that of a plateau."""
        self.steps += 1
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()

    def plateau_step(self, epoch: int, value: float) -> None:
        """Give ReduceLROnPlateau the value of an epoch."""
        self.scheduler.step(value)
        self.plateau_epoch = epoch

    def get_last_lr(self) -> list[Any]:
        """Return the rate of each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheduler, and what it has changed in the optimizer."""
        now = _hyperparameters(self.optimizer)
        return {
            "step": self.steps,
            "name": type(self.scheduler).__name__,
            "configured": self._configured,
            "scheduler": self.scheduler.state_dict(),
            "plateau_epoch": self.plateau_epoch,
            "changed": [
                {k: v for k, v in group.items() if k not in start or start[k] != v}
                for group, start in zip(now, self._starts(), strict=True)
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UserError: If it is that of another schedule, or of one that was configured otherwise.
        """
        if difference := self._difference(state_dict):
            raise UserError(
                f"the checkpoint's learning rate schedule is another: {difference}. Schedulers of "
                "torch go on from their own state: give the same model.lr_schedule and "
                "learning rate, or one of Cosine, Linear, Constant, which may change"
            )
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self.steps, self.plateau_epoch = state_dict["step"], state_dict["plateau_epoch"]
        groups = self.optimizer.param_groups
        pairs = zip(groups, self._starts(), state_dict["changed"], strict=True)
        for group, start, changed in pairs:
            group.update({**start, **changed})

    def _starts(self) -> list[dict[str, Any]]:
        """Return the options that each group began with; of those added since, the present ones."""
        return self._start + _hyperparameters(self.optimizer)[len(self._start) :]

    def _difference(self, saved: dict[str, Any]) -> str:
        name = type(self.scheduler).__name__
        if saved.get("name", "") != name:
            return (
                f"{saved.get('name', 'Cosine, Linear, Constant or a function')} there, {name} now"
            )
        old, new = saved["configured"], self._configured
        names = [k for k in {**old, **new} if old.get(k) != new.get(k) and not k.startswith("_")]
        names = names or [k for k in {**old, **new} if old.get(k) != new.get(k)]
        return ", ".join(f"{k} {old.get(k)} there, {new.get(k)} now" for k in names)


class PlateauSteps(Callback):
    """Gives ReduceLROnPlateau the metric it monitors, once an epoch and before a checkpoint.

    Lightning does so after the checkpoint of the epoch's validation, so a run resumed from there
    would miss one value.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for schedule in _plateaus(trainer):
            monitor = _monitor(schedule)
            if monitor.startswith("val") and not sum(trainer.num_val_batches):
                raise UserError(
                    f"ReduceLROnPlateau monitors {monitor}, and nothing is validated: give "
                    "data.val, or monitor train/loss (lightning.pytorch.cli.ReduceLROnPlateau has "
                    "the option monitor)"
                )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        is_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if is_fit and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            _step_plateaus(trainer, is_end=False)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        _step_plateaus(trainer, is_end=True)


def _step_plateaus(trainer: Any, is_end: bool) -> None:
    for schedule in _plateaus(trainer):
        if schedule.plateau_epoch >= trainer.current_epoch:
            continue
        value = trainer.callback_metrics.get(monitor := _monitor(schedule))
        if value is not None:
            schedule.plateau_step(trainer.current_epoch, float(value))
        elif is_end and trainer.check_val_every_n_epoch == 1:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise UserError(f"ReduceLROnPlateau monitors {monitor!r}; there are {known or 'none'}")


def _plateaus(trainer: Any) -> list[TorchSchedule]:
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [
        s
        for s in found
        if isinstance(s, TorchSchedule) and isinstance(s.scheduler, ReduceLROnPlateau)
    ]


def _monitor(schedule: TorchSchedule) -> str:
    return str(getattr(schedule.scheduler, "monitor", _MONITOR))


def _hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of each group of an optimizer, all that are no parameters."""
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def _made(factory: Callable[..., Any], optimizer: Optimizer, total_steps: float) -> Any:
    """Return the scheduler, which is given the run's steps if it takes them."""
    name, filled = name_of(factory), dict[str, Any]()
    if total := _total_to_fill(factory):
        if not math.isfinite(total_steps):
            raise UserError(
                f"model.lr_schedule {name} needs {total}, and nothing limits the steps of the run: "
                f"give it, or trainer.max_steps (trainer.max_epochs, where the training loader has "
                "a length)"
            )
        filled[total] = max(1, int(total_steps))
    if _is_needed(factory, _PEAK):
        filled[_PEAK] = [float(group["lr"]) for group in optimizer.param_groups]
    try:
        made = factory(optimizer, **filled)
    except (TypeError, ValueError) as error:
        raise UserError(f"model.lr_schedule {name}: {error}") from error
    if not isinstance(made, LRScheduler):
        raise UserError(
            f"model.lr_schedule {name} returned {made!r:.80}: it must be a class of torch's "
            "schedulers, a function from an optimizer to one, or from a step to a factor"
        )
    return made


def _total_to_fill(factory: Callable[..., Any]) -> str | None:
    """Return the parameter for the run's steps, if there is one that was not given."""
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    parameters = _parameters(factory)
    name = next((n for n in _TOTALS if n in parameters), None)
    if name is None or given.get(name) is not None:
        return None
    if None not in (given.get("epochs"), given.get("steps_per_epoch")):  # OneCycleLR's other way
        return None
    default = parameters[name].default
    return name if default in (None, inspect.Parameter.empty) else None


def given_peak(factory: Callable[..., Any]) -> Any:
    """Return the ``max_lr`` that a factory was given, if it was."""
    return factory.keywords.get(_PEAK) if isinstance(factory, functools.partial) else None


def _is_needed(factory: Callable[..., Any], name: str) -> bool:
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    parameter = _parameters(factory).get(name)
    return parameter is not None and parameter.default is parameter.empty and name not in given


def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(class_of(factory) or factory).parameters)
    except (TypeError, ValueError):  # of C
        return {}


def class_of(factory: Any) -> type | None:
    """Return the class that a factory makes: itself, or that of a partial, also jsonargparse's."""
    if isinstance(factory, type):
        return factory
    if isinstance(factory, functools.partial):
        parts = (factory.func, *factory.args)
        return next((part for part in parts if isinstance(part, type)), None)
    return None


def name_of(factory: Any) -> str:
    """Return the name of a factory or function, as its author wrote it."""
    found = class_of(factory) or getattr(factory, "func", factory)
    return str(getattr(found, "__name__", type(found).__name__))
