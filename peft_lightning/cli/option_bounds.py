"""What a run's options may be, where their types allow more: checked before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from peft_lightning.cli.config_index import ConfigIndex
from peft_lightning.kernels.machine import device_of
from peft_lightning.messages import UserError, did_you_mean
from peft_lightning.training.cluster.strategies import require_supported, supported_strategies


@dataclass(frozen=True)
class Bound:
    """What an option may be.

    Args:
        allows: Whether a value is allowed.
        allowed: The same in words, after "must be".
    """

    allows: Callable[[Any], bool]
    allowed: str


def _at_least(least: int, allowed: str | None = None) -> Bound:
    return Bound(lambda value: value >= least, allowed or f"at least {least}")


def _is_share_or_number(value: Any) -> bool:
    """Whether a limit is a fraction, as a float, or a number of batches."""
    return 0 <= value <= 1 if isinstance(value, float) else value >= 0


def _is_devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(isinstance(i, int) and i >= 0 for i in value)
    text = str(value).strip()
    if text in ("auto", "-1"):
        return True
    numbers = text.split(",")
    return all(n.strip().isdigit() for n in numbers) and (len(numbers) > 1 or int(numbers[0]) > 0)


_SHARE = Bound(_is_share_or_number, "a fraction from 0.0 to 1.0 or a number of batches")
_SEED = Bound(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")
_LIMIT = "at least 1, or -1 for no limit"
BOUNDS = {
    "seed_everything": Bound(lambda v: isinstance(v, bool) or _SEED.allows(v), _SEED.allowed),
    "data.seed": _SEED,
    "data.num_workers": _at_least(0),
    "data.batch_size": _at_least(1),
    "data.val_batch_size": _at_least(1),
    "data.tokens_per_batch": _at_least(1),
    "model.learning_rate": Bound(lambda v: 0 < v < math.inf, "above 0: with 0 nothing is trained"),
    "trainer.accumulate_grad_batches": _at_least(1),
    "trainer.check_val_every_n_epoch": _at_least(1),
    "trainer.devices": Bound(_is_devices, "a number of devices, a list of their indices, or auto"),
    "trainer.limit_predict_batches": _SHARE,
    "trainer.limit_test_batches": _SHARE,
    "trainer.limit_train_batches": Bound(
        lambda v: _is_share_or_number(v) and v != 0, f"{_SHARE.allowed}, and not 0"
    ),
    "trainer.limit_val_batches": _SHARE,
    "trainer.log_every_n_steps": _at_least(0),
    "trainer.max_epochs": Bound(lambda v: v == -1 or v >= 1, _LIMIT),
    "trainer.max_steps": Bound(lambda v: v == -1 or v >= 1, _LIMIT),
    "trainer.min_epochs": _at_least(0),
    "trainer.min_steps": _at_least(0),
    "trainer.num_nodes": _at_least(1),
    "trainer.num_sanity_val_steps": _at_least(-1, "at least 0, or -1 for all batches"),
    "trainer.overfit_batches": _SHARE,
    "trainer.reload_dataloaders_every_n_epochs": _at_least(0),
    "trainer.val_check_interval": Bound(
        lambda v: 0 < v <= 1 if isinstance(v, float) else isinstance(v, str) or v >= 1,
        "a fraction of an epoch, from above 0.0 to 1.0, a number of batches or a time DD:HH:MM:SS",
    ),
}


def check_bounds(config: Any, index: ConfigIndex) -> None:
    """Check the options of a run that have a value.

    Args:
        config: The command's configuration; ``config.get(key)`` is the value of a dotted key.
        index: What the user gave, and where.

    Raises:
        UserError: For the first value that is not allowed, or the first two that contradict each
            other; names the place, the value and what is allowed.
    """
    for key, bound in BOUNDS.items():
        section, _, name = key.rpartition(".")
        value = config.get(key, config.get(f"{section}.init_args.{name}"))
        if value is not None and not _allows(bound, value):
            raise UserError(f"{_option(key, index)} must be {bound.allowed}, got {value!r}")
    trainer = config.trainer
    accelerators = {"auto", "gpu", *AcceleratorRegistry.available_accelerators()}
    _check_name(trainer.accelerator, "trainer.accelerator", accelerators, index)
    _check_devices(trainer, index)
    require_supported(getattr(trainer.strategy, "class_path", trainer.strategy))
    strategies = {"auto", *supported_strategies(StrategyRegistry.available_strategies())}
    _check_name(trainer.strategy, "trainer.strategy", strategies, index)
    _check_name(
        trainer.profiler, "trainer.profiler", ("simple", "advanced", "pytorch", "xla"), index
    )
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        low, high = config.get(f"trainer.{least}"), config.get(f"trainer.{most}")
        if low is not None and high not in (None, -1) and low > high:
            raise UserError(
                f"{_option(f'trainer.{least}', index)} is {low}, more than trainer.{most}, {high}"
            )


def _allows(bound: Bound, value: Any) -> bool:
    try:
        return bound.allows(value)
    except TypeError:  # another type, which has its own message
        return True


def _check_devices(trainer: Any, index: ConfigIndex) -> None:
    """Check that processes on a CPU are given by their number."""
    devices = trainer.devices
    is_number = str(devices).strip().isdigit() or devices == "auto"
    if device_of(trainer.accelerator) == "cpu" and not is_number:
        raise UserError(
            f"{_option('trainer.devices', index)} must be a number of processes on a CPU, got "
            f"{devices!r}"
        )


def _check_name(name: Any, key: str, known: Iterable[str], index: ConfigIndex) -> None:
    names = sorted(known)
    if isinstance(name, str) and name.lower() not in names:
        raise UserError(
            f"{_option(key, index)} must be one of {', '.join(names)}, got {name!r}"
            + did_you_mean(name, names)
        )


def _option(key: str, index: ConfigIndex) -> str:
    """Return the name of an option, behind the place where it was given."""
    given = index.get(key)
    return key if given is None else _placed(key, given.where)


def _placed(key: str, where: str) -> str:
    return where if where.removesuffix("+") == f"--{key}" else f"{where}: {key}"


def located(message: str, index: ConfigIndex) -> str:
    """Return an error's message behind the place of the option that it begins with.

    Args:
        message: As it is raised, such as "lora_alpha must be a number above 0, got 0".
        index: What the user gave, and where.
    """
    name, _, rest = message.partition(" ")
    colon = ":" * name.endswith(":")
    name = name.removesuffix(":")
    found = {k: v.where for k, v in index.entries if k == name or k.endswith(f".{name}")}
    if len(found) != 1:
        return message
    ((key, where),) = found.items()
    return f"{_placed(key, where)}{colon} {rest}"
