"""Schedules are planned for the steps that a run will really make."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from peft_lightning import CausalLMModule, Constant, LoRA
from peft_lightning.training.planned_steps import planned_steps
from recorded import Rates
from tiny_run import fit, flat_batch


class Planned(L.Callback):
    """The steps that were planned when the training began."""

    def on_train_start(self, trainer, pl_module):
        self.steps = trainer.lr_scheduler_configs[0].scheduler.total_steps


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_epochs": 3, "accumulate_grad_batches": 4},  # the last step of an epoch has 2
        {"max_epochs": 3, "limit_train_batches": 4},
        {"max_epochs": 2, "limit_train_batches": 0.5, "accumulate_grad_batches": 2},
        {"max_epochs": 3, "max_steps": 7},
        {"max_epochs": -1, "max_steps": 7},
        {"max_epochs": 2, "max_time": "00:01:00:00"},
        {"max_epochs": 4, "schedule": {1: 2, 3: 4}},
        {"max_epochs": 4, "max_steps": 9, "schedule": {0: 3}},
        {"max_epochs": 2, "data": {"tokens_per_batch": 160, "batch_size": 1}},
        {"max_epochs": 1, "overfit_batches": 2},
    ],
    ids=str,
)
def test_a_run_makes_the_steps_that_were_planned(base, rows, tmp_path, options):
    planned = Planned()
    options = {**options, "callbacks": [planned]}
    if schedule := options.pop("schedule", None):
        options["callbacks"].append(GradientAccumulationScheduler(schedule))
    trainer = fit(base, rows, tmp_path / "run", **options)
    assert planned.steps == trainer.global_step


@pytest.mark.parametrize(
    "options", [{"max_epochs": -1}, {"max_epochs": None, "max_time": "00:00:00:05"}], ids=str
)
def test_without_a_limit_a_schedule_that_needs_the_steps_is_refused(base, rows, tmp_path, options):
    with pytest.raises(ValueError, match=r"nothing limits it: give trainer.max_steps"):
        fit(base, rows, tmp_path / "run", **options)
    schedule = torch.optim.lr_scheduler.OneCycleLR
    with pytest.raises(ValueError, match=r"OneCycleLR needs total_steps, and nothing limits"):
        fit(base, rows, tmp_path / "run", module={"lr_schedule": schedule}, **options)


class Stream(IterableDataset):
    """Batches without a known number."""

    def __iter__(self):
        return iter([flat_batch([7, 9], seed) for seed in range(5)])


def fit_stream(base, root, schedule=None, **options):
    rates = Rates()
    module = CausalLMModule(
        *(str(base), LoRA(r=2)),
        learning_rate=1e-2,
        **({} if schedule is None else {"lr_schedule": schedule}),
    )
    trainer = L.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
        **{"default_root_dir": root, "callbacks": [rates], **options},
    )
    trainer.fit(module, DataLoader(Stream(), batch_size=None))
    return trainer, rates.rates


def test_a_stream_without_max_steps_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match=r"give trainer.max_steps, or trainer.max_epochs if the"):
        fit_stream(base, tmp_path, max_epochs=3)


def test_a_stream_is_planned_by_max_steps(base, tmp_path):
    trainer, rates = fit_stream(base, tmp_path, max_epochs=3, max_steps=8)
    assert planned_steps(trainer) == trainer.global_step == 8
    assert min(rates) > 0


def test_a_stream_is_trained_to_its_end_by_a_schedule_that_needs_no_number(base, tmp_path):
    trainer, rates = fit_stream(base, tmp_path, Constant(), max_epochs=3)
    assert planned_steps(trainer) == math.inf
    assert rates == [1e-2] * 15
