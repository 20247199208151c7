"""What a run will need, before it is started: rows, steps, parameters, disk, memory and time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from peft_lightning.experiments.plan.disk import DiskBytes
from peft_lightning.experiments.plan.facts import ParameterFacts, RowFacts
from peft_lightning.experiments.plan.rates import capacity_note, rate_warning
from peft_lightning.experiments.plan.seconds import Seconds
from peft_lightning.experiments.plan.steps import StepFacts


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Args:
        folder: The run's folder.
        base_model: Its base.
        train: The training rows; None for data of a user's own class.
        val: The validation rows, if there are any.
        steps: What the training loop will do.
        parameters: What is trained.
        disk: What is left on disk.
        peak_bytes: Memory at the highest.
        seconds: Time.
        device: Where: cpu, cuda, or the name of a GPU.
        is_measured: Whether memory and time come from steps that were run.
        warnings: One line each.
        notes: One line each.
    """

    folder: str
    base_model: str
    train: RowFacts | None
    val: RowFacts | None
    steps: StepFacts
    parameters: ParameterFacts
    disk: DiskBytes
    peak_bytes: float
    seconds: Seconds
    device: str
    is_measured: bool
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values; what has no number is None."""
        plain = asdict(self)
        plain["steps"]["step_tokens"] = self.steps.step_tokens
        plain["parameters"]["share"] = self.parameters.share
        plain["disk"]["total"] = self.disk.total
        plain["seconds"]["total"] = self.seconds.total
        plain["peak_bytes"] = round(self.peak_bytes)
        result = _finite(plain)
        assert isinstance(result, dict)
        return result


def _finite(value: Any) -> Any:
    """Return a value without infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remarks(plan_of: ParameterFacts, adapter: Any, train: RowFacts | None) -> tuple[list[str], ...]:
    """Return the warnings and the notes on a run."""
    rate = plan_of.learning_rate
    warned = rate_warning(adapter.peft_type, plan_of.base, rate, adapter.learning_rate)
    loss_tokens = 0 if train is None else train.loss_tokens
    noted = capacity_note(adapter.peft_type, plan_of.trainable, loss_tokens)
    return [warned] if warned else [], [noted] if noted else []
