"""Weights with optimizer options of their own: ``model.parameter_groups``, LoRA+ for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from peft_lightning.adapters.lora.name_matching import match_pattern
from peft_lightning.messages import UserError, did_you_mean, shortened

RATIO = "lr_ratio"
NAME = "name"  # of a group, its pattern

Groups = Mapping[str, Mapping[str, Any]]


def check_groups(groups: Groups | None) -> None:
    """Raise UserError if ``model.parameter_groups`` are no options by patterns."""
    for pattern, options in (groups or {}).items():
        if not isinstance(options, Mapping) or not options:
            raise UserError(
                f"model.parameter_groups {pattern}: give options of the optimizer, such as "
                f"{{{RATIO}: 16}}, got {options!r:.80}"
            )
        if RATIO in options and "lr" in options:
            raise UserError(
                f"model.parameter_groups {pattern}: {RATIO} is a factor on the learning rate, and "
                "lr is another rate; leave one out"
            )
        for name in (RATIO, "lr"):
            value = options.get(name, 1.0)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value < math.inf:
                raise UserError(
                    f"model.parameter_groups {pattern}: {name} must be a number above 0, got "
                    f"{value!r}"
                )


def split_groups(optimizer: Optimizer, module: nn.Module, groups: Groups | None) -> None:
    """Give the weights that a pattern matches a group of their own, in place.

    Args:
        optimizer: With all that is trained, at its full rate, before its first step.
        module: Names the weights; those of the base model as in the model itself.
        groups: Options by patterns, which match as those of ``rank_pattern``: the first counts.

    Raises:
        UserError: If a pattern matches nothing that is trained, or an option is none of the
            optimizer's.
    """
    if not groups:
        return
    names = {id(p): n.removeprefix("model.") for n, p in module.named_parameters()}
    trained = [names.get(id(p), "") for g in optimizer.param_groups for p in g["params"]]
    taken: dict[str, str | None] = {name: _pattern_of(groups, name) for name in trained}
    for pattern, options in groups.items():
        _require_known(pattern, options, optimizer, taken)
    for group in list(optimizer.param_groups):
        for pattern, options in groups.items():
            own = [p for p in group["params"] if taken[names.get(id(p), "")] == pattern]
            if not own:
                continue
            ids = set(map(id, own))
            group["params"] = [p for p in group["params"] if id(p) not in ids]
            values = {k: v for k, v in group.items() if k != "params"}
            values |= {k: v for k, v in options.items() if k != RATIO}
            values["lr"] = values["lr"] * options.get(RATIO, 1.0)
            optimizer.add_param_group({**values, "params": own, NAME: pattern})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def check_same_groups(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Raise UserError if a checkpoint's optimizer has other groups than ``optimizer``."""
    there, here = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    if there != here:
        raise UserError(
            f"the optimizer has groups of {_counts(here)} weights and that of the checkpoint of "
            f"{_counts(there)}: give model.parameter_groups and model.optimizer of the run, or "
            "begin a new run with its adapter by model.init_from"
        )


def _counts(counts: list[int]) -> str:
    return ", ".join(map(str, counts))


def _pattern_of(groups: Groups, name: str) -> str | None:
    return next((pattern for pattern in groups if match_pattern({pattern: True}, name)), None)


def _require_known(
    pattern: str, options: Mapping[str, Any], optimizer: Optimizer, taken: Mapping[str, str | None]
) -> None:
    if pattern not in taken.values():
        ends = sorted({".".join(name.split(".")[-2:]) for name in taken})
        before = any(match_pattern({pattern: True}, name) for name in taken)
        why = "an earlier pattern has all that it matches" if before else "it matches nothing"
        raise UserError(
            f"model.parameter_groups {pattern!r}: {why}{did_you_mean(pattern, ends)}; trained are "
            f"{shortened(ends, limit=12)}"
        )
    known = [*sorted(optimizer.param_groups[0].keys() - {"params", "initial_lr"}), RATIO]
    for name in options:
        if name not in known:
            raise UserError(
                f"model.parameter_groups {pattern!r}: {type(optimizer).__name__} has no option "
                f"{name!r} for a group{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
