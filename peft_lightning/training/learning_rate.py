"""One learning rate for module and optimizer: which of the two says it, and when they disagree."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from peft_lightning.messages import UserError
from peft_lightning.training.torch_schedules import class_of, name_of


def requested_rate(module: Any) -> float | None:
    """Return the learning rate that was asked for; None for the adapter's recommended one.

    That is the module's argument, or what ``module.learning_rate`` was set to since, by a tuner.
    """
    if module.learning_rate == module.adapter.learning_rate and module.given_learning_rate is None:
        return None
    return float(module.learning_rate)


def optimizer_at_its_rate(module: Any, parameters: list[nn.Parameter]) -> Optimizer:
    """Return the configured optimizer at the learning rate of the module, or at its own.

    ``module.learning_rate`` is then what it trains at.

    Args:
        module: The ``CausalLMModule``; ``optimizer`` is a class, a partial or a function.
        parameters: What is trained.

    Raises:
        UserError: If the optimizer was given another rate than the module.
    """
    factory, requested = module.optimizer, requested_rate(module)
    is_set_since = requested != module.given_learning_rate
    lr = _parameter(factory)
    own = factory.keywords.get("lr") if isinstance(factory, functools.partial) else None
    if None not in (own, requested) and own != requested and not is_set_since:
        raise UserError(_two_rates(module, name_of(factory), own))
    if lr is not None and (own is None or is_set_since):
        if requested is None and lr.default is None:  # it finds its rate itself
            return factory(parameters)
        return factory(parameters, lr=float(module.learning_rate))
    optimizer: Optimizer = factory(parameters)
    rates = [float(group["lr"]) for group in optimizer.param_groups if group["lr"] is not None]
    if requested is None and len(set(rates)) == 1:
        module.learning_rate = rates[0]
    elif requested is not None and any(rate != requested for rate in rates):
        default = _parameter(type(optimizer))
        if not is_set_since and (default is None or any(r != default.default for r in rates)):
            raise UserError(_two_rates(module, type(optimizer).__name__, rates[0]))
        for group in optimizer.param_groups:
            group["lr"] = requested
    return optimizer


def _parameter(factory: Callable[..., Any]) -> inspect.Parameter | None:
    """Return the parameter ``lr`` of an optimizer or of a function that makes one."""
    try:
        return inspect.signature(class_of(factory) or factory).parameters.get("lr")
    except (TypeError, ValueError):
        return None


def _two_rates(module: Any, name: str, own: Any) -> str:
    return (
        f"two learning rates: model.learning_rate is {module.learning_rate} and {name} has lr "
        f"{own}; leave one out"
    )
