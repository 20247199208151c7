"""Schedules of torch and functions of the step as ``lr_schedule``, resumed bit for bit."""

import functools
import math

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau as MonitoringPlateau
from torch.optim import lr_scheduler

from peft_lightning import CausalLMModule, Constant
from recorded import Rates, SaveAfter, assert_same, trained
from tiny_run import fit

STEPS = 18  # 3 epochs of 23 rows in batches of 4
RATE = 1e-2


def in_sequence(optimizer):
    first = lr_scheduler.ConstantLR(optimizer, 0.5, 3)
    return lr_scheduler.SequentialLR(
        optimizer, [first, lr_scheduler.ExponentialLR(optimizer, 0.9)], [3]
    )


def one_over_step(step):
    return 1 / (step + 1)


SCHEDULES = {
    "one cycle": lr_scheduler.OneCycleLR,
    "cosine": lr_scheduler.CosineAnnealingLR,
    "step": functools.partial(lr_scheduler.StepLR, step_size=4, gamma=0.5),
    "milestones": functools.partial(lr_scheduler.MultiStepLR, milestones=[3, 9]),
    "warm restarts": functools.partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=5),
    "cyclic": functools.partial(
        lr_scheduler.CyclicLR, base_lr=1e-4, step_size_up=4, cycle_momentum=False
    ),
    "lambda": functools.partial(lr_scheduler.LambdaLR, lr_lambda=one_over_step),
    "sequence": in_sequence,
    "plateau": functools.partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0),
    "plateau of train/loss": functools.partial(
        MonitoringPlateau, monitor="train/loss", patience=0, threshold=10.0
    ),
    "function of the step": one_over_step,
    "lambda function of the step": lambda step: 0.5**step,
    "class of ours": Constant,
}


def run(base, rows, root, schedule, callbacks=(), **options):
    rates = Rates()
    module = {"lr_schedule": schedule, "learning_rate": RATE} | options.pop("module", {})
    trainer = fit(
        *(base, rows, root),
        **{"max_epochs": 3, "callbacks": [rates, *callbacks], "module": module, **options},
    )
    return trainer, rates.rates


@pytest.mark.parametrize(
    ("name", "step"),
    [(name, 5) for name in SCHEDULES]
    # a plateau needs the validation, which Lightning does not make up for after such a checkpoint;
    # those of a run are made after the validation: see the next test
    + [(name, 12) for name in SCHEDULES if "plateau" not in name],
)
def test_a_resumed_run_is_the_undisturbed_one(base, rows, tmp_path, name, step):
    schedule, path = SCHEDULES[name], tmp_path / "middle.ckpt"
    whole, rates = run(base, rows, tmp_path / "a", schedule, [SaveAfter(step, path)])
    assert whole.global_step == STEPS
    resumed, later = run(base, rows, tmp_path / "b", schedule, ckpt_path=str(path))
    assert later == rates[step:]
    assert_same(trained(resumed), trained(whole))


@pytest.mark.parametrize("name", ["plateau", "plateau of train/loss", "one cycle"])
def test_a_run_resumed_from_the_checkpoint_of_a_validation_is_the_undisturbed_one(
    base, rows, tmp_path, name
):
    short = {"max_epochs": 3, "limit_train_batches": 3}
    whole, rates = run(base, rows, tmp_path / "a", SCHEDULES[name], **short)

    class Stop(Exception):  # noqa: N818
        pass

    class StopAfterValidation(Rates):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise Stop

    with pytest.raises(Stop):
        run(base, rows, tmp_path / "b", SCHEDULES[name], [StopAfterValidation()], **short)
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    resumed, later = run(base, rows, tmp_path / "c", SCHEDULES[name], ckpt_path=str(last), **short)
    assert later == rates[6:]
    assert_same(trained(resumed), trained(whole))


def test_a_scheduler_is_stepped_at_each_step_over_all_steps_of_the_run(base, rows, tmp_path):
    _, rates = run(base, rows, tmp_path / "a", lr_scheduler.CosineAnnealingLR)
    expected = [RATE * (1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)]
    assert rates == pytest.approx(expected)


def test_one_cycle_has_its_peak_at_the_learning_rate(base, rows, tmp_path):
    _, rates = run(base, rows, tmp_path / "a", lr_scheduler.OneCycleLR)
    assert len(rates) == STEPS
    assert max(rates) == pytest.approx(RATE, rel=0.1)  # the peak lies between two steps
    assert rates[0] == pytest.approx(RATE / 25)  # torch's default div_factor


def test_a_cycled_momentum_is_resumed_too(base, rows, tmp_path):
    class Betas(Rates):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            self.rates.append(optimizer.param_groups[0]["betas"])

    whole, resumed, path = Betas(), Betas(), tmp_path / "middle.ckpt"
    cycle = lr_scheduler.OneCycleLR
    run(base, rows, tmp_path / "a", cycle, [whole, SaveAfter(5, path)])
    run(base, rows, tmp_path / "b", cycle, [resumed], ckpt_path=str(path))
    assert len({betas[0] for betas in whole.rates}) > 5
    assert resumed.rates == whole.rates[5:]


def test_a_plateau_counts_epochs_and_not_steps(base, rows, tmp_path):
    _, rates = run(base, rows, tmp_path / "a", SCHEDULES["plateau"])
    assert rates == pytest.approx([1e-2] * 6 + [1e-3] * 6 + [1e-4] * 6)


def test_a_plateau_without_a_validation_is_refused_at_the_start(base, rows, tmp_path):
    with pytest.raises(ValueError, match="monitors val/loss, and nothing is validated"):
        run(base, rows, tmp_path / "a", SCHEDULES["plateau"], data={"val_fraction": 0.0})


def test_a_plateau_of_an_unknown_metric_names_those_there_are(base, rows, tmp_path):
    schedule = functools.partial(MonitoringPlateau, monitor="val/los")
    with pytest.raises(ValueError, match=r"'val/los'; there are .*val/loss"):
        run(base, rows, tmp_path / "a", schedule)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (functools.partial(lr_scheduler.StepLR, step_size=4, gamma=0.1), "gamma 0.5 there, 0.1"),
        (lr_scheduler.CosineAnnealingLR, "StepLR there, CosineAnnealingLR now"),
    ],
    ids=["another option", "another scheduler"],
)
def test_a_run_resumed_with_another_scheduler_is_refused(base, rows, tmp_path, changed, said):
    path = tmp_path / "middle.ckpt"
    run(base, rows, tmp_path / "a", SCHEDULES["step"], [SaveAfter(5, path)])
    with pytest.raises(ValueError, match=said):
        run(base, rows, tmp_path / "b", changed, ckpt_path=str(path))


def test_a_scheduler_after_a_schedule_of_ours_is_refused(base, rows, tmp_path):
    path = tmp_path / "middle.ckpt"
    run(base, rows, tmp_path / "a", Constant(), [SaveAfter(5, path)])
    with pytest.raises(ValueError, match="Cosine, Linear, Constant or a function there, StepLR"):
        run(base, rows, tmp_path / "b", SCHEDULES["step"], ckpt_path=str(path))


def test_a_run_resumed_at_another_rate_of_a_scheduler_is_refused(base, rows, tmp_path):
    path = tmp_path / "middle.ckpt"
    run(base, rows, tmp_path / "a", SCHEDULES["step"], [SaveAfter(5, path)])
    with pytest.raises(ValueError, match=r"base_lrs \[0.01\] there, \[0.02\] now"):
        run(
            *(base, rows, tmp_path / "b", SCHEDULES["step"]),
            module={"learning_rate": 0.02},
            ckpt_path=str(path),
        )


def test_a_schedule_of_ours_takes_over_from_a_scheduler(base, rows, tmp_path):
    path = tmp_path / "middle.ckpt"
    run(base, rows, tmp_path / "a", SCHEDULES["step"], [SaveAfter(5, path)])
    _, rates = run(base, rows, tmp_path / "b", Constant(), ckpt_path=str(path))
    assert rates == [RATE] * (STEPS - 5)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("Cosin", "did you mean Cosine"),
        (3, "must be Cosine.*got 3"),
        (
            lambda optimizer: len(optimizer.param_groups) * "x",
            "returned 'x': it must be a class of torch's",
        ),
        (lambda step: -1.0, "factor of 0 or more, got -1.0 at step 0"),
        (lambda step: math.nan, "factor of 0 or more, got nan at step 0"),
        (lr_scheduler.StepLR, "StepLR: .*step_size"),
        (functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1), "two learning rates.*0.1"),
    ],
)
def test_what_is_no_schedule_is_named(base, rows, tmp_path, schedule, said):
    with pytest.raises(ValueError, match=said):
        run(base, rows, tmp_path / "a", schedule)


def test_a_scheduler_of_another_optimizer_is_refused(base, rows, tmp_path):
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(ValueError, match="StepLR of another optimizer: give its class"):
        run(base, rows, tmp_path / "a", lr_scheduler.StepLR(other, 3))


def test_a_name_stands_for_a_schedule_of_ours(base):
    assert isinstance(CausalLMModule(str(base), lr_schedule="Linear").lr_schedule, str)
