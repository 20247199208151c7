"""The changes that make a run need less memory, and what it needs with some of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from peft_lightning.data.batching import BatchPlan
from peft_lightning.experiments.plan.advice import Change, Variant
from peft_lightning.experiments.plan.gpu import estimate
from peft_lightning.experiments.plan.measured import Measured
from peft_lightning.experiments.plan.measured_run import Planned, can_quantize, of_rows
from peft_lightning.experiments.plan.model_shape import (
    ModelShape,
    StepOptions,
    memory_of,
    operations,
)
from peft_lightning.experiments.plan.seconds import BatchTime, batch_time

MANY_ROWS = 50_000  # of which the batches of every size are not counted
CUTS = (95, 90, 75, 50)  # percentiles of the rows' lengths that max_length may be
# what a change costs in quality, as a share of the time that one would give to avoid it
LOSS = {"bfloat16": 0.02, "8bit": 0.05, "4bit": 0.15, "cut": 2.0}
SLOWER = {"bfloat16": 1.05, "8bit": 1.2, "4bit": 1.35}  # assumed, until it is measured


def changes_for(planned: Planned, accumulate: int, truncation: str = "drop") -> list[Change]:
    """Return the changes that could be made to a run, the mildest of a kind first.

    Args:
        planned: The run as it is.
        accumulate: Its ``accumulate_grad_batches``.
        truncation: Its ``data.truncation``.
    """
    module, options = planned.module, planned.options
    found: list[Change] = []
    if planned.batches is not None:
        found += _smaller_batches(planned.batches, accumulate)
    if options.dtype == "float32" and not module.adapter.trains_base and not module.quantization:
        found.append(
            Change(
                *("weights", ("--model.dtype", "bfloat16"), "frozen weights in two bytes each"),
                loss=LOSS["bfloat16"],
                set_to=(("dtype", "bfloat16"),),
                slower=SLOWER["bfloat16"],
            )
        )
    if not options.checkpointing and not module.adapter.uses_kv_cache:
        found.append(
            Change(
                *("checkpointing", ("--model.activation_checkpointing", "true")),
                "activations are computed twice; the result is the same",
                set_to=(("checkpointing", True),),
            )
        )
    if can_quantize(planned):
        found += [
            Change(
                *("quantization", ("--model.quantization", bits)),
                f"frozen linear layers in {bits[0]} bits, which rounds them",
                loss=LOSS[bits],
                set_to=(("quantization", bits),),
                slower=SLOWER[bits],
            )
            for bits in ("8bit", "4bit")
        ]
    if planned.batches is not None:
        found += _shorter_rows(planned.batches, truncation)
    return found


def _smaller_batches(plan: BatchPlan, accumulate: int) -> list[Change]:
    """Return batches of a part of the rows, accumulated to steps of as many tokens."""
    found: list[Change] = []
    size = plan.tokens_per_batch or plan.batch_size
    longest = int(plan.lengths.max(initial=1))
    for k in range(2, size + 1):
        name, fits = "batch_size", size % k == 0
        if plan.tokens_per_batch is not None:
            name, fits = "tokens_per_batch", k & (k - 1) == 0 and size // k >= longest
            if size // k < longest:
                break
        if not fits:
            continue
        options: tuple[str, ...] = (f"--data.{name}", str(size // k))
        options += ("--trainer.accumulate_grad_batches", str(accumulate * k))
        effect = f"steps of the same rows, in {accumulate * k} batches"
        found.append(Change("batch", options, effect, divide=k))
    return found


def _shorter_rows(plan: BatchPlan, truncation: str) -> list[Change]:
    found: list[Change] = []
    longest = int(plan.lengths.max(initial=0))
    for percent in CUTS:
        most = int(np.percentile(plan.lengths, percent, method="inverted_cdf"))
        rows = int((plan.lengths > most).sum())
        if not rows or most >= longest or any(c.max_tokens == most for c in found):
            continue
        options: tuple[str, ...] = ("--data.max_length", str(most))
        done = "leaves out"
        if truncation != "drop":
            options, done = (*options, "--data.truncation", "truncate"), "cuts"
        lost = 1 - np.minimum(plan.lengths, most).sum() / plan.lengths.sum()
        if truncation == "drop":
            lost = plan.lengths[plan.lengths > most].sum() / plan.lengths.sum()
        found.append(
            Change(
                *("length", options, f"{done} {rows:,} of {len(plan.lengths):,} rows"),
                loss=LOSS["cut"] + float(lost),
                max_tokens=most,
            )
        )
    return found


def predictor(planned: Planned) -> Callable[[tuple[Change, ...]], Variant]:
    """Return a function from changes to what the run needs with them."""
    tokens = functools.cache(functools.partial(_tokens, planned.batches, planned.options.tokens))

    def predict(changes: tuple[Change, ...]) -> Variant:
        divide = next((c.divide for c in changes if c.divide > 1), 1)
        most = next((c.max_tokens for c in changes if c.max_tokens is not None), None)
        largest, share = tokens(divide, most)
        fields: dict[str, Any] = dict(pair for c in changes for pair in c.set_to)
        fields["keeps_gradients"] = planned.options.keeps_gradients or divide > 1
        options = replace(planned.options, tokens=largest, **fields)
        peak = _peak(planned, options)
        slower = 1.0
        for change in changes:
            slower *= change.slower
        seconds = planned.plan.seconds
        ratio = _time_ratio(planned, options, divide, share) * slower
        other = seconds.total - seconds.training
        return Variant(changes, peak, other + seconds.training * ratio, is_measured=False)

    return predict


def _tokens(
    plan: BatchPlan | None, largest: int, divide: int, most: int | None
) -> tuple[int, float]:
    """Return the tokens of the largest batch, and the share of all tokens that is left."""
    if plan is None or (divide == 1 and most is None):
        return largest, 1.0
    lengths = plan.lengths if most is None else np.minimum(plan.lengths, most)
    share = float(lengths.sum() / plan.lengths.sum())
    if len(lengths) > MANY_ROWS:
        return max(int(lengths.max()), round(largest * share / divide)), share
    budget = plan.tokens_per_batch and plan.tokens_per_batch // divide
    rows = max(1, plan.batch_size // divide)
    options = (plan.padded, plan.shuffle, plan.seed, plan.world_size)
    smaller = BatchPlan(lengths, plan.sources, rows, budget, *options)
    virtual = largest - _largest(plan)  # tokens of prompts, which come with the rows
    return _largest(smaller) + max(0, virtual) // divide, share


def _largest(plan: BatchPlan) -> int:
    each = [plan.lengths[rows] for rows in plan.batches(0) if len(rows)]
    return max(int(len(x) * x.max()) if plan.padded else int(x.sum()) for x in each)


def _peak(planned: Planned, options: StepOptions) -> float:
    """Return the memory with other options: by arithmetic, scaled to what was measured."""
    steps, train = planned.plan.steps, planned.plan.train
    if planned.gpu is not None:
        return estimate(
            planned.gpu.gpu, planned.gpu.precision, planned.shape, options, *of_rows(steps, train)
        ).peak
    measured = planned.measured
    assert measured is not None
    return peak_of(measured, planned.shape, planned.options, options)


def peak_of(
    measured: Measured, shape: ModelShape, before: StepOptions, after: StepOptions
) -> float:
    """Return the peak with other options than those that were measured.

    What the steps took beside the loaded model grows as the arithmetic says; weights by their
    difference.
    """
    old, new = memory_of(shape, before), memory_of(shape, after)
    weights = new.weights - old.weights
    steps = (measured.peak - measured.loaded) * (new.total - new.weights)
    steps /= old.total - old.weights
    return max(measured.load_peak + weights, measured.loaded + weights + steps)


def _time_ratio(planned: Planned, options: StepOptions, divide: int, share: float) -> float:
    """Return the factor on the time of training."""
    steps, train = planned.plan.steps, planned.plan.train
    mean, loss_share, row = of_rows(steps, train)
    work = operations(planned.shape, 1.0, loss_share, row, options.checkpointing)
    work /= operations(planned.shape, 1.0, loss_share, row, planned.options.checkpointing)
    if planned.gpu is not None:
        args = (planned.shape, options, mean * share / divide, loss_share, row)
        now = estimate(planned.gpu.gpu, planned.gpu.precision, *args)
        return share * now.seconds_per_token / planned.gpu.seconds_per_token
    if steps.batch_tokens is None:  # of a data module of one's own: its batches stay as they are
        return work
    measured = planned.measured
    time = batch_time(measured.batches) if measured else BatchTime(0.0, 1.0)
    return divide * time.of(mean * share / divide) / time.of(mean) * work
