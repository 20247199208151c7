"""Module and optimizer train at one learning rate, whichever of them was given it."""

import functools

import lightning as L
import pytest
import torch
from torch.optim import SGD, AdamW

from peft_lightning import CausalLMModule, Constant, LoRA
from peft_lightning.training.learning_rate import optimizer_at_its_rate, requested_rate

RECOMMENDED = LoRA.learning_rate


def rate_of(base, optimizer, rate=None, since=None):
    module = CausalLMModule(str(base), learning_rate=rate, optimizer=optimizer)
    if since is not None:
        module.learning_rate = since
    made = optimizer_at_its_rate(module, [torch.nn.Parameter(torch.zeros(1))])
    assert module.learning_rate == made.param_groups[0]["lr"]
    return made.param_groups[0]["lr"]


def at(lr):
    return lambda parameters: SGD(parameters, lr=lr)


def with_option(parameters, lr=0.7):
    return SGD(parameters, lr=lr)


@pytest.mark.parametrize(
    ("optimizer", "rate", "trains_at"),
    [
        (SGD, 0.5, 0.5),
        (AdamW, 0.5, 0.5),
        (functools.partial(SGD, momentum=0.9), 0.5, 0.5),
        (with_option, 0.5, 0.5),
        (lambda parameters: SGD(parameters), 0.5, 0.5),
        (SGD, None, RECOMMENDED),
        (functools.partial(SGD, momentum=0.9), None, RECOMMENDED),
        (functools.partial(SGD, lr=0.1), None, 0.1),
        (at(0.1), None, 0.1),
        (functools.partial(SGD, lr=0.1), 0.1, 0.1),
        (at(0.1), 0.1, 0.1),
    ],
)
def test_an_optimizer_trains_at_the_rate_that_was_given(base, optimizer, rate, trains_at):
    assert rate_of(base, optimizer, rate) == trains_at


@pytest.mark.parametrize("optimizer", [functools.partial(SGD, lr=0.1), at(0.1)])
def test_two_rates_that_differ_are_refused(base, optimizer):
    with pytest.raises(ValueError, match=r"two learning rates: model.learning_rate is 0.5 and SGD"):
        rate_of(base, optimizer, 0.5)


@pytest.mark.parametrize("optimizer", [SGD, functools.partial(SGD, lr=0.1), at(0.1), with_option])
@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_rate_that_was_set_since_wins(base, optimizer, rate):
    assert rate_of(base, optimizer, rate, since=0.3) == 0.3


def test_an_optimizer_that_finds_its_own_rate_is_given_none(base):
    class Own(SGD):
        def __init__(self, params, lr=None):
            super().__init__(params, lr=0.25 if lr is None else lr)

    assert optimizer_at_its_rate(
        CausalLMModule(str(base), optimizer=Own), [torch.nn.Parameter(torch.zeros(1))]
    ).param_groups[0]["lr"] == pytest.approx(0.25)
    assert rate_of(base, Own, 0.5) == 0.5


def test_a_rate_of_several_groups_is_kept(base):
    def groups(parameters):
        return SGD([{"params": p, "lr": 0.1 * (i + 1)} for i, p in enumerate(parameters)])

    module = CausalLMModule(str(base), optimizer=groups)
    two = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    made = optimizer_at_its_rate(module, two)
    assert [g["lr"] for g in made.param_groups] == [0.1, 0.2]


def test_the_recommended_rate_was_not_asked_for(base):
    assert requested_rate(CausalLMModule(str(base))) is None
    assert requested_rate(CausalLMModule(str(base), learning_rate=RECOMMENDED)) == RECOMMENDED


def test_a_run_trains_at_the_rate_of_the_module(base, rows, tmp_path):
    from recorded import Rates
    from tiny_run import fit

    rates = Rates()
    module = {"learning_rate": 0.5, "optimizer": SGD, "lr_schedule": Constant()}
    trainer: L.Trainer = fit(
        base, rows, tmp_path / "run", module=module, callbacks=[rates], max_epochs=1
    )
    assert rates.rates == [0.5] * trainer.global_step
