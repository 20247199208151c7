"""How long a run takes: from a few steps that were timed, or from a GPU's data sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peft_lightning.experiments.plan.facts import RowFacts
from peft_lightning.experiments.plan.gpu import GPUEstimate
from peft_lightning.experiments.plan.measured import Measured
from peft_lightning.experiments.plan.steps import StepFacts


@dataclass(frozen=True)
class BatchTime:
    """Seconds of a training batch: ``fixed + per_token * tokens``."""

    fixed: float
    per_token: float

    def of(self, tokens: float) -> float:
        """Return the seconds of a batch of ``tokens``."""
        return self.fixed + self.per_token * tokens


@dataclass(frozen=True)
class Seconds:
    """How long a run takes, by what it does.

    Args:
        start: Until the first step, tokenizing included.
        training: Steps.
        validation: All validations.
        saving: Checkpoints, and the end.
        step: Of these, one optimizer step.
        tokens_per_second: While it trains; None if the tokens are not known.
    """

    start: float
    training: float
    validation: float
    saving: float
    step: float
    tokens_per_second: float | None

    @property
    def total(self) -> float:
        """All of them."""
        return self.start + self.training + self.validation + self.saving


def batch_time(batches: list[tuple[int, float]]) -> BatchTime:
    """Return the seconds of a batch by its tokens, from timed ones; the first one warms up.

    By least squares where the batches differ enough; else in proportion to the tokens.
    """
    timed = batches[1:] or batches
    tokens = [float(t) for t, _ in timed]
    seconds = [s for _, s in timed]
    mean_tokens, mean_seconds = sum(tokens) / len(timed), sum(seconds) / len(timed)
    spread = sum((t - mean_tokens) ** 2 for t in tokens)
    if len(timed) >= 4 and max(tokens) > 1.5 * min(tokens):
        products = sum((t - mean_tokens) * s for t, s in zip(tokens, seconds, strict=True))
        slope = products / spread
        fixed = mean_seconds - slope * mean_tokens
        if slope > 0 and fixed >= 0:
            return BatchTime(fixed, slope)
    return BatchTime(0.0, mean_seconds / max(1.0, mean_tokens))


def measured_seconds(
    measured: Measured,
    steps: StepFacts,
    val: RowFacts | None,
    every_n_steps: int | None,
) -> Seconds:
    """Return how long a run takes on this machine.

    Args:
        measured: A few of its steps.
        steps: All that it does.
        val: Its validation rows, each of which is read once a validation.
        every_n_steps: Optimizer steps between two checkpoints; None for those of validations.
    """
    time = batch_time(measured.batches)
    mean = sum(t for t, _ in measured.batches) / len(measured.batches)
    tokens = mean if steps.batch_tokens is None else steps.batch_tokens
    each = time.of(tokens)
    if measured.device == "cpu":
        each *= steps.processes  # which share the cores
    optimizer = sorted(measured.optimizer)[len(measured.optimizer) // 2]
    per_step = steps.accumulate * each + optimizer
    count = steps.steps
    if not math.isfinite(count):
        count = (steps.max_seconds or 0.0) / per_step
    batches = steps.epochs * steps.batches
    batches = batches if math.isfinite(batches) else count * steps.accumulate
    warm_up = max(0.0, measured.batches[0][1] - time.of(measured.batches[0][0]))
    training = warm_up + batches * each + count * optimizer
    if steps.max_seconds is not None:
        training = min(training, steps.max_seconds)
    save = sum(measured.saves) / max(1, len(measured.saves))
    saves = 2 * steps.validations + (count // every_n_steps if every_n_steps else 0)
    return Seconds(
        start=measured.start + measured.tokenizing,
        training=training,
        validation=steps.validations * _validation(measured, steps, val),
        saving=(max(1, saves) if measured.saves else 0) * save + measured.end,
        step=per_step,
        tokens_per_second=tokens * steps.processes / each if each else None,
    )


def _validation(measured: Measured, steps: StepFacts, val: RowFacts | None) -> float:
    """Return the seconds of one validation."""
    if not measured.val_batches:
        return 0.0
    seconds = sum(s for _, s in measured.val_batches)
    tokens = sum(t for t, _ in measured.val_batches)
    if val is None or not tokens:
        share = steps.validation_batches * steps.processes / len(measured.val_batches)
    else:
        share = max(1.0, val.tokens / tokens)
    return seconds * share + measured.val_rest


def gpu_seconds(
    found: GPUEstimate, steps: StepFacts, val: RowFacts | None, start: float
) -> Seconds:
    """Return how long a run takes on a GPU that is not here; each process has one.

    Args:
        found: What is assumed of it.
        steps: All that the run does.
        val: Its validation rows.
        start: Seconds until the first step.
    """
    tokens = steps.batch_tokens or 0.0
    each = tokens * found.seconds_per_token
    batches = steps.epochs * steps.batches
    training = batches * each if math.isfinite(batches) else (steps.max_seconds or 0.0)
    of_val = 0.0 if val is None else val.tokens / steps.processes * found.seconds_per_token / 2
    return Seconds(
        start=start,
        training=training,
        validation=steps.validations * of_val,
        saving=0.0,
        step=steps.accumulate * each,
        tokens_per_second=steps.processes / found.seconds_per_token,
    )
