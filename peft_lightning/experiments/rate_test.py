"""A range test of the learning rate: rates that grow step by step, and the loss at each.

Smith 2017 (arXiv 1506.01186, section 3.3). The rate that is suggested is a third of the one at the
minimum of the smoothed loss. fastai's rule is a tenth of it, read from a running mean that is late
by about a factor of three. The other rule in use, the steepest descent, is shown beside it: it
depends on single batches. For a tiny LoRA whose best rate of a sweep was 0.01 to 0.02, two seeds
gave 0.0051 and 0.0057 by the first rule, 0.0021 and 0.12 by the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from peft_lightning.experiments.plan.measure import quiet
from peft_lightning.messages import RunError, UserError

SMOOTHING = 0.9  # of the running mean that tells divergence: each step's loss is a tenth of it
AROUND = 5  # steps on either side, of the mean that the curve is read from: without delay
DIVERGED = 1.5  # times the lowest running mean
SAFETY = 3.0  # by which the rate at the minimum is divided


@dataclass
class RateTest:
    """What a range test has found.

    Attributes:
        rates: Of the steps, growing by a constant factor.
        losses: The mean loss per token of each step's batch, in nats, before the step.
        running: Their running mean, by which divergence is seen.
        highest: The rate at which the test was to end.
    """

    highest: float
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    running: list[float] = field(default_factory=list)

    def add(self, rate: float, loss: float) -> bool:
        """Add a step; return whether the loss has diverged."""
        self.rates.append(rate)
        self.losses.append(loss)
        count = len(self.losses)
        before = self.running[-1] * (1 - SMOOTHING ** (count - 1)) if count > 1 else 0.0
        mean = (SMOOTHING * before + (1 - SMOOTHING) * loss) / (1 - SMOOTHING**count)
        self.running.append(mean)
        return self.has_diverged

    @property
    def has_diverged(self) -> bool:
        """Whether the loss has risen so far that the test ends before its last rate."""
        return not self.running[-1] <= DIVERGED * min(self.running)

    @cached_property
    def smoothed(self) -> list[float]:
        """Of each step, the mean of the losses around it; of a test that is over."""
        means = []
        for i in range(len(self.losses)):
            width = min(AROUND, i, len(self.losses) - 1 - i)
            part = self.losses[i - width : i + width + 1]
            means.append(sum(part) / len(part))
        return means

    @property
    def at_minimum(self) -> float:
        """The rate at which the smoothed loss was lowest."""
        return self.rates[min(range(len(self.rates)), key=self.smoothed.__getitem__)]

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss fell most for a factor of the rate."""
        falls = [b - a for a, b in zip(self.smoothed, self.smoothed[1:], strict=False)]
        return self.rates[min(range(len(falls)), key=falls.__getitem__)]

    @property
    def suggestion(self) -> float:
        """The rate to train with, of two digits."""
        return float(f"{self.at_minimum / SAFETY:.1e}")

    @property
    def warning(self) -> str | None:
        """Why the suggestion is not to be trusted; None if nothing speaks against it."""
        if self.suggestion <= self.rates[0]:
            return (
                f"the suggestion is at the lower edge of the range: begin lower than "
                f"--min_lr {self.rates[0]:g}"
            )
        if not self.has_diverged and self.at_minimum > 0.7 * self.highest:
            return (
                f"the loss still falls at the upper edge of the range: end higher than --max_lr "
                f"{self.highest:g}"
            )
        return None


class _GrowingRates(Callback):
    """Sets the learning rate of each step, writes down its loss, and ends a run that diverges."""

    def __init__(self, test: RateTest, lowest: float, steps: int) -> None:
        self.test, self.lowest = test, lowest
        self.factor = (test.highest / lowest) ** (1 / (steps - 1))
        self.ratios: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: L.LightningModule) -> None:
        rates = [g.get("initial_lr", g["lr"]) for g in trainer.optimizers[0].param_groups]
        self.ratios = [rate / rates[0] if rates[0] else 1.0 for rate in rates]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        rate = self.lowest * self.factor**trainer.global_step
        for group, ratio in zip(optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = rate * ratio
        sums = pl_module.step_sums
        loss = float(sums.nll) / (float(sums.tokens) or 1.0)
        if not math.isfinite(loss) or self.test.add(rate, loss):
            trainer.should_stop = True


def run_rate_test(
    trainer: Any, module: Any, datamodule: Any, lowest: float, highest: float, steps: int
) -> RateTest:
    """Train with growing rates; the trainer and the module are of no use after it.

    Args:
        trainer: That of ``fit``, with a temporary ``default_root_dir``.
        module: What is trained.
        datamodule: The rows, which are repeated if there are too few.
        lowest: The rate of the first step.
        highest: That of the last.
        steps: Their number, if the loss does not diverge before.

    Raises:
        RunError: If it diverges at once.
    """
    test = RateTest(highest)
    trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, ModelCheckpoint)]
    trainer.callbacks.append(_GrowingRates(test, lowest, steps))
    trainer.limit_val_batches = 0
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, steps
    trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
    with quiet():
        try:
            trainer.fit(module, datamodule=datamodule)
        except RunError:  # a loss that is no number
            if len(test.rates) < 3:
                raise
    if len(test.rates) < 3:
        raise RunError(f"the loss diverges within {len(test.rates)} steps: give a lower --min_lr")
    return test


def check_range(lowest: float, highest: float, steps: int) -> None:
    """Raise UserError unless a range test can be made of these."""
    if not 0 < lowest < highest < math.inf:
        raise UserError(
            f"--min_lr must be above 0 and below --max_lr, got {lowest:g} and {highest:g}"
        )
    if steps < 10:
        raise UserError(f"--steps must be at least 10, for a curve to be read from, got {steps}")
