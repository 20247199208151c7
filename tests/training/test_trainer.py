"""A trainer in Python has what the command line fills in, and keeps what the user gave."""

import json
import os
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cli_driver import drive
from peft_lightning import CausalLMModule, LoRA, SFTDataModule, Trainer
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.progress_bar import TokenProgressBar
from tiny_run import fit, flat_batch, write_base

QUIET = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}


def files_of(root):
    found = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    return {f for f in found if "events.out" not in f} - {"config.yaml"}


def test_three_lines_of_python_train_what_the_command_line_trains(
    base, rows, tmp_path, monkeypatch
):
    options = {"model.base_model": base, "data.train": rows, "trainer.accelerator": "cpu"}
    args = [f"--{name}={value}" for name, value in options.items()]
    (tmp_path / "command").mkdir()
    ((status, _, error),) = drive(tmp_path / "command", [["fit", *args]])
    assert status == 0, error
    (tmp_path / "python").mkdir()
    monkeypatch.chdir(tmp_path / "python")
    L.seed_everything(0, verbose=False)
    trainer = Trainer(accelerator="cpu")
    trainer.fit(CausalLMModule(str(base)), SFTDataModule(train=str(rows)))
    theirs, ours = (tmp_path / name / "runs" / "default" for name in ("command", "python"))
    assert files_of(ours) == files_of(theirs)
    weights = "checkpoints/last.ckpt/adapter_model.safetensors"
    one, other = load_file(ours / weights), load_file(theirs / weights)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    said = [json.loads((root / "summary.json").read_text()) for root in (ours, theirs)]
    for name in ("steps", "epochs", "precision", "dtype", "adapter", "best_val_loss", "data_hash"):
        assert said[0][name] == said[1][name], name
    assert trainer.gradient_clip_val == 1.0


def test_a_trainer_of_lightnings_without_a_limit_trains_three_epochs_and_says_so(
    base, rows, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        trainer = fit(base, rows, tmp_path / "run", max_epochs=None)
    assert trainer.current_epoch == 3
    said = [r.message for r in caplog.records if "in place of Lightning's 1,000" in r.message]
    assert len(said) == 1
    assert "peft_lightning.Trainer" in said[0]


@pytest.mark.parametrize(
    "limit", [{"max_epochs": 1}, {"max_steps": 4}, {"max_epochs": -1, "max_steps": 4}]
)
def test_a_limit_that_is_given_is_kept(limit, base, rows, tmp_path):
    for kind in (L.Trainer, Trainer):
        trainer = kind(default_root_dir=tmp_path / "run", **QUIET, **limit)
        module = CausalLMModule(str(base), LoRA(r=2))
        trainer.fit(module, SFTDataModule(train=str(rows), val_fraction=0))
        assert trainer.global_step == (3 if limit.get("max_epochs") == 1 else 4)


def test_the_precision_follows_the_dtype_of_the_module(base, rows, tmp_path):
    trainer = Trainer(default_root_dir=tmp_path / "run", max_steps=1, **QUIET)
    trainer.fit(CausalLMModule(str(base), dtype="float32"), SFTDataModule(train=str(rows)))
    assert trainer.precision == "32-true"
    assert trainer.lightning_module.model.dtype == torch.float32


# ---- callbacks --------------------------------------------------------------------------------


def bars(trainer):
    return [type(c) for c in trainer.callbacks if isinstance(c, ProgressBar)]


def attached(kind, tmp_path, **options):
    trainer = kind(default_root_dir=tmp_path / "run", logger=False, accelerator="cpu", **options)
    trainer.strategy._lightning_module = module = CausalLMModule("none")
    module.trainer = trainer
    return trainer


GIVEN = {
    "options": [TQDMProgressBar(refresh_rate=7)],
    "another class": [type("Bar", (TQDMProgressBar,), {})()],
}


@pytest.mark.parametrize("kind", [L.Trainer, Trainer])
@pytest.mark.parametrize("given", GIVEN)
def test_a_progress_bar_of_the_users_stays(kind, given, tmp_path):
    trainer = attached(kind, tmp_path, callbacks=list(GIVEN[given]))
    assert bars(trainer) == [type(GIVEN[given][0])]
    assert trainer.progress_bar_callback is GIVEN[given][0]


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_a_bar_without_options_stays_where_it_is_known_to_be_given(bar, tmp_path):
    pytest.importorskip("rich") if bar is RichProgressBar else None
    assert bars(attached(Trainer, tmp_path, callbacks=[bar()])) == [bar]


@pytest.mark.parametrize("kind", [L.Trainer, Trainer])
def test_lightnings_own_bar_and_checkpoint_make_room_for_ours_once(kind, tmp_path):
    trainer = attached(kind, tmp_path)
    trainer.lightning_module.trainer = trainer
    assert bars(trainer) == [TokenProgressBar]
    assert [type(c) for c in trainer.checkpoint_callbacks] == [AdapterCheckpoint]
    kinds = [type(c) for c in trainer.callbacks]
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("kind", [L.Trainer, Trainer])
def test_what_is_disabled_stays_disabled(kind, tmp_path):
    options = {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = attached(kind, tmp_path, **options)
    assert bars(trainer) == []
    assert trainer.checkpoint_callbacks == []


OWN_CHECKPOINTS = {
    "steps": {"every_n_train_steps": 2, "save_top_k": -1},
    "monitor": {"monitor": "val/loss", "save_last": True},
    "exception": {"save_on_exception": True},
}


@pytest.mark.parametrize("options", OWN_CHECKPOINTS)
def test_a_checkpoint_callback_of_the_users_comes_before_ours(options, tmp_path):
    own = ModelCheckpoint(**OWN_CHECKPOINTS[options])
    trainer = attached(L.Trainer, tmp_path, callbacks=[own])
    assert [type(c) for c in trainer.checkpoint_callbacks] == [ModelCheckpoint, AdapterCheckpoint]


OWN_CHECKPOINT = """
trainer:
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {monitor: val/loss}
"""


def test_a_run_with_a_checkpoint_callback_of_the_users_goes_on_from_last(base, rows, tmp_path):
    (tmp_path / "own.yaml").write_text(OWN_CHECKPOINT)
    options = {"model.base_model": base, "data.train": rows, "trainer.accelerator": "cpu"}
    args = ["fit", "--config=own.yaml", *(f"--{n}={v}" for n, v in options.items())]
    first, second = drive(
        tmp_path,
        [
            [*args, "--trainer.max_epochs=1"],
            [*args, "--trainer.max_epochs=2", "--ckpt_path=last"],
        ],
    )
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    summary = json.loads((tmp_path / "runs" / "own" / "summary.json").read_text())
    assert summary["epochs"] == 2
    assert "starting from the beginning" not in second[2]


# ---- what writes checkpoints ------------------------------------------------------------------


def test_checkpoints_are_adapter_folders_also_when_they_are_written_in_the_background(
    base, rows, tmp_path
):
    plain = fit(base, rows, tmp_path / "plain")
    trainer = fit(base, rows, tmp_path / "run", plugins=[AsyncCheckpointIO()])
    folder = tmp_path / "run" / "checkpoints" / "last.ckpt"
    one = load_file(folder / "adapter_model.safetensors")
    assert all(torch.equal(one[n], t) for n, t in plain.lightning_module.state_dict().items())
    again = fit(
        base,
        rows,
        tmp_path / "run",
        plugins=[AsyncCheckpointIO()],
        ckpt_path=str(folder),
        max_epochs=3,
    )
    assert again.global_step == 3 * trainer.global_step / 2


class OwnIO(CheckpointIO):
    def __init__(self):
        self.saved = []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.saved.append(Path(path).name)
        os.makedirs(Path(path).parent, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(path, weights_only=False)

    def remove_checkpoint(self, path):
        os.remove(path)


def test_a_checkpoint_plugin_of_the_users_writes_the_checkpoints_which_is_said(
    base, rows, tmp_path, caplog
):
    own = OwnIO()
    folder = tmp_path / "own"
    saves = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    with caplog.at_level("INFO"):
        whole = fit(base, rows, tmp_path / "run", plugins=[own], callbacks=[saves])
    assert {"last.ckpt", "step=4.ckpt"} <= set(own.saved)
    said = [r.message for r in caplog.records if "written by OwnIO" in r.message]
    assert len(said) == 1
    last = str(folder / "step=4.ckpt")
    again = fit(base, rows, tmp_path / "again", plugins=[OwnIO()], ckpt_path=last)
    state = again.lightning_module.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in whole.lightning_module.state_dict().items())


def test_a_checkpoint_of_another_base_is_refused_whoever_reads_it(base, rows, tmp_path):
    other = write_base(tmp_path / "other", "qwen2")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] += 1
    model.save_pretrained(other)
    fit(base, rows, tmp_path / "run", plugins=[OwnIO()], max_epochs=1)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match="belongs to another base model"):
        fit(other, rows, tmp_path / "on", plugins=[OwnIO()], ckpt_path=last)


# ---- batches of any form ----------------------------------------------------------------------


class AnyBatch(CausalLMModule):
    def nll(self, batch):
        parts = batch.values() if isinstance(batch, dict) else batch
        sums = [super(AnyBatch, self).nll(part) for part in parts if isinstance(part, dict)]
        return sum(nll for nll, _ in sums), sum(count for _, count in sums)


def pair(i):
    return flat_batch([9, 7], seed=i), flat_batch([5], seed=i + 100)


FORMS = {
    "a tuple": lambda i: pair(i),
    "a dict of dicts": lambda i: dict(zip(("chosen", "rejected"), pair(i), strict=True)),
    "a list with other things": lambda i: [*pair(i), torch.zeros(2), "text"],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_may_have_any_form_that_nll_understands(form, base, tmp_path):
    batches = [FORMS[form](i) for i in range(4)]
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer = Trainer(default_root_dir=tmp_path / "run", max_epochs=1, **QUIET)
    module = AnyBatch(str(base), LoRA(r=2))
    trainer.fit(module, loader, loader)
    assert trainer.global_step == 4
    assert {"train/loss", "val/loss"} <= trainer.callback_metrics.keys()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["tokens"] == 4 * 21
    trainer.test(module, loader)


# ---- which of two values is better ------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/loss", "min"),
        ("val/loss/gsm8k", "min"),
        ("val/perplexity", "min"),
        ("val/token_accuracy", "max"),
        ("val/bits_per_byte", "min"),
        ("val/contains", "max"),
        ("val_acc", "max"),
        ("my/exact-match", "max"),
        ("rougeL", "max"),
    ],
)
def test_the_best_is_by_the_name_of_what_is_monitored(monitor, mode):
    assert AdapterCheckpoint(monitor=monitor).mode == mode


@pytest.mark.parametrize("monitor", ["my/value", "accuracy_loss"])
def test_a_name_that_does_not_tell_needs_a_mode(monitor):
    with pytest.raises(ValueError, match=f"{monitor} is better is not known: give .* mode"):
        AdapterCheckpoint(monitor=monitor)
    assert AdapterCheckpoint(monitor=monitor, mode="max").mode == "max"
    with pytest.raises(ValueError, match="mode must be auto, min or max"):
        AdapterCheckpoint(mode="maximum")
