"""The learning rate's factor, step by step."""

import math

import pytest
import torch

from peft_lightning.training.schedules import Constant, Cosine, Linear, ScheduledLR


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(), {0: 1, 5: 1, 10: 1}),
        (Constant(warmup=4), {0: 1 / 4, 1: 2 / 4, 3: 1, 9: 1}),
        (Linear(warmup=0), {0: 1, 5: 0.5, 10: 0}),
        (Cosine(warmup=0), {0: 1, 5: 0.5, 10: 0}),
        (Cosine(warmup=0.2), {1: 1, 2: 1, 6: 0.5, 10: 0}),
        (Linear(warmup=2), {1: 1, 2: 1, 6: 0.5, 10: 0}),
    ],
    ids=repr,
)
def test_the_factor_rises_in_the_warm_up_and_falls_to_zero(schedule, factors):
    for step, factor in factors.items():
        assert schedule.factor(step, 10) == pytest.approx(factor)


def test_cosine_is_half_a_cosine_wave():
    for step in range(11):
        expected = (1 + math.cos(math.pi * step / 10)) / 2
        assert Cosine(warmup=0).factor(step, 10) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Constant, Linear, Cosine])
def test_no_step_trains_at_rate_zero_because_of_the_warm_up(schedule):
    assert schedule(warmup=3).factor(0, 10) > 0


@pytest.mark.parametrize("warmup", [-1, -0.1, 1.5])
def test_a_warm_up_out_of_range_is_named(warmup):
    with pytest.raises(ValueError, match=f"warmup.*{warmup}"):
        Cosine(warmup=warmup)


def test_a_resumed_schedule_goes_on_where_it_stopped():
    def fresh():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, ScheduledLR(optimizer, Cosine(warmup=2), 8)

    optimizer, schedule = fresh()
    rates = []
    for step in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        if step == 3:
            state = schedule.state_dict()
    optimizer, schedule = fresh()
    schedule.load_state_dict(state)
    for step in range(4, 8):
        assert optimizer.param_groups[0]["lr"] == rates[step]
        optimizer.step()
        schedule.step()
    assert rates == [0.5 * Cosine(warmup=2).factor(step, 8) for step in range(8)]


def test_a_run_without_an_end_takes_only_a_schedule_that_needs_none():
    def factor(schedule, steps):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduled = ScheduledLR(optimizer, schedule, math.inf)
        for _ in range(steps):
            optimizer.step()
            scheduled.step()
        return optimizer.param_groups[0]["lr"]

    assert [factor(Constant(warmup=4), steps) for steps in (0, 1, 4, 99)] == [0.25, 0.5, 1, 1]
    assert factor(Constant(), 5) == 1
    for schedule in (Cosine(), Linear(warmup=2), Constant(warmup=0.1)):
        with pytest.raises(ValueError, match="needs the number of steps, and nothing limits it"):
            factor(schedule, 0)
