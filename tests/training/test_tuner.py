"""What Lightning's tuners find is what a run trains with, and nothing else is left of them."""

import functools

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from recorded import Rates, assert_same, trained
from tiny_run import fit

DROPOUT = LoRA(r=2, lora_dropout=0.1)  # whose random numbers a tuner must not use up


class Rows(L.Callback):
    """The number of rows of each training batch."""

    def __init__(self):
        self.rows = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(int((batch["position_ids"] == 0).sum()))


def parts(base, rows, tmp_path, module=None, **data):
    L.seed_everything(0, verbose=False)
    data = {"batch_size": 4, "cache_dir": str(tmp_path / "cache"), **data}
    return (
        CausalLMModule(str(base), DROPOUT, **{"learning_rate": 1e-2, **(module or {})}),
        SFTDataModule(train=str(rows), **data),
    )


def trainer(root, *callbacks, **options):
    given = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 2}
    return L.Trainer(
        **{**given, "default_root_dir": root, "use_distributed_sampler": False, **options},
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
    )


def finder():
    return LearningRateFinder(min_lr=1e-5, max_lr=1e-1, num_training_steps=20)


LONG = {"max_epochs": 4}  # 24 steps: the search ends with the run, and leaves out its first 10


def test_a_run_after_a_learning_rate_finder_is_that_of_the_found_rate(base, rows, tmp_path):
    rates, expected = Rates(), Rates()
    tuned = fit(base, rows, tmp_path / "a", callbacks=[finder(), rates], adapter=DROPOUT, **LONG)
    found = tuned.lightning_module.learning_rate
    assert found not in (1e-2, LoRA.learning_rate)
    plain = fit(
        *(base, rows, tmp_path / "b"),
        callbacks=[expected],
        adapter=DROPOUT,
        module={"learning_rate": found},
        **LONG,
    )
    assert rates.rates == expected.rates
    assert_same(trained(tuned), trained(plain))


def test_the_tuner_sets_the_rate_of_the_fit_that_follows(base, rows, tmp_path):
    module, data = parts(base, rows, tmp_path)
    runner = trainer(tmp_path / "a", rates := Rates(), **LONG)
    found = Tuner(runner).lr_find(module, datamodule=data, min_lr=1e-5, num_training=20)
    assert module.learning_rate == found.suggestion()
    runner.fit(module, data)
    assert max(rates.rates) == found.suggestion()


def test_the_losses_that_a_rate_finder_sees_are_means_over_tokens(base, rows, tmp_path):
    module, data = parts(base, rows, tmp_path, val_fraction=0)
    means = []

    class Means(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            nll, tokens = pl_module.nll(batch)
            means.append(float(nll / tokens))

    trainer(tmp_path / "a", Means(), max_epochs=1).fit(module, data)
    runner = trainer(tmp_path / "b", **LONG)
    rates = {"min_lr": 1e-9, "max_lr": 1e-8, "num_training": 6}  # the weights hardly move
    found = Tuner(runner).lr_find(module, datamodule=data, update_attr=False, **rates)
    assert len(found.results["loss"]) == 6
    for loss in found.results["loss"]:  # smoothed, so within their range
        assert 0.5 * min(means) < loss < 1.5 * max(means)


def test_a_found_rate_wins_over_that_of_the_optimizer(base, rows, tmp_path):
    module = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.3)}
    tuned = fit(
        base, rows, tmp_path / "a", callbacks=[finder(), rates := Rates()], module=module, **LONG
    )
    assert tuned.lightning_module.learning_rate != 0.3
    assert max(rates.rates) == tuned.lightning_module.learning_rate


def test_a_found_rate_is_the_peak_of_a_scheduler_of_torch(base, rows, tmp_path):
    one_cycle = torch.optim.lr_scheduler.OneCycleLR
    tuned = fit(
        *(base, rows, tmp_path / "a"),
        callbacks=[finder(), rates := Rates()],
        module={"lr_schedule": one_cycle},
        **LONG,
    )
    assert rates.rates[0] == pytest.approx(tuned.lightning_module.learning_rate / 25)
    assert len(rates.rates) == tuned.global_step == 24


def test_a_rate_that_a_scheduler_would_not_use_is_not_searched_in_silence(base, rows, tmp_path):
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    with pytest.raises(ValueError, match=r"OneCycleLR has max_lr 0.1, so learning rate .* not"):
        fit(
            *(base, rows, tmp_path / "a"),
            callbacks=[finder()],
            module={"lr_schedule": schedule, "learning_rate": None},
            **LONG,
        )


def batch_finder(**options):
    return BatchSizeFinder(**{"max_trials": 3, "init_val": 2, "steps_per_trial": 1, **options})


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_a_run_after_a_batch_size_finder_is_that_of_the_found_size(base, rows, tmp_path, mode):
    tuned = fit(
        *(base, rows, tmp_path / "a"),
        callbacks=[batch_finder(mode=mode, margin=0.0), seen := Rows(), rates := Rates()],
        adapter=DROPOUT,
        data={"batch_size": 1},
    )
    assert tuned.datamodule.batch_size == 8  # of 2, 4 and 8
    assert seen.rows == [8, 8, 7] * 2
    plain = fit(
        *(base, rows, tmp_path / "b"),
        callbacks=[expected := Rates()],
        adapter=DROPOUT,
        data={"batch_size": 8},
    )
    assert rates.rates == expected.rates  # planned for 6 steps, not for 46
    assert_same(trained(tuned), trained(plain))


def test_the_trials_have_the_sizes_that_are_tried(base, rows, tmp_path, monkeypatch):
    tried = []
    step = CausalLMModule.training_step

    def recorded(self, batch, batch_idx):
        tried.append(int((batch["position_ids"] == 0).sum()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLMModule, "training_step", recorded)
    fit(base, rows, tmp_path / "a", callbacks=[batch_finder()], data={"batch_size": 1})
    assert tried[1:3] == [4, 8]  # Lightning makes the first trial with the loader of before


def test_the_tuner_sets_the_batch_size_of_the_fit_that_follows(base, rows, tmp_path):
    module, data = parts(base, rows, tmp_path, batch_size=1)
    runner = trainer(tmp_path / "a", seen := Rows())
    options = {"max_trials": 3, "init_val": 2, "steps_per_trial": 1}
    found = Tuner(runner).scale_batch_size(module, datamodule=data, **options)
    assert found == data.batch_size == 8
    runner.fit(module, data)
    assert seen.rows == [8, 8, 7] * 2


def test_a_batch_size_is_not_searched_beyond_the_rows(base, rows, tmp_path):
    tuned = fit(base, rows, tmp_path / "a", callbacks=[batch_finder(max_trials=25)])
    assert tuned.datamodule.batch_size == 32  # the first size of all 24 rows


def test_tokens_of_a_batch_are_tuned_by_their_name(base, rows, tmp_path):
    tuned = fit(
        *(base, rows, tmp_path / "a"),
        callbacks=[
            batch_finder(batch_arg_name="tokens_per_batch", init_val=128, max_trials=2),
            seen := Rows(),
        ],
        data={"tokens_per_batch": 64, "batch_size": 1},
    )
    assert tuned.datamodule.tokens_per_batch == 256
    assert max(seen.rows) > 2


def test_a_batch_size_without_an_effect_is_refused(base, rows, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size changes nothing.*'tokens_per_batch'"):
        fit(
            *(base, rows, tmp_path / "a"),
            callbacks=[batch_finder()],
            data={"tokens_per_batch": 160, "batch_size": 1},
        )


def test_batches_of_validation_follow_the_size(base, rows, tmp_path):
    _, data = parts(base, rows, tmp_path, val=str(rows), tokenizer=str(base))
    data.setup("fit")
    data.batch_size = 12
    assert len(data.val_dataloader()) == 2
    assert len(data.train_dataloader()) == 2
