"""Callbacks and plugins of Lightning that need help beside an adapter."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelPruning, SpikeDetection
from lightning.pytorch.plugins import DeepSpeedPrecision

from cli_driver import drive
from lightning_cases import UnfreezeNorm
from peft_lightning import CausalLMModule, LoRA
from peft_lightning.cli.errors import reason_in_union
from test_overrides import SaveAt, assert_equal
from tiny_run import fit


def test_what_finetuning_unfreezes_is_loaded_without_the_callback(base, rows, tmp_path):
    trainer = fit(base, rows, tmp_path / "run", callbacks=[UnfreezeNorm()])
    state = trainer.lightning_module.state_dict()
    assert "model.model.norm.weight" in state
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    loaded = CausalLMModule.load_from_checkpoint(last)
    assert_equal(loaded.state_dict(), state)
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert "model.model.norm.weight" in trained
    assert not any("embed_tokens" in name for name in trained)


class Running(Callback):
    """Keeps the mean loss that a ``SpikeDetection`` compares with, when training starts."""

    def on_train_start(self, trainer, module):
        (spikes,) = [c for c in trainer.callbacks if isinstance(c, SpikeDetection)]
        self.mean = spikes.running_mean.compute().clone()


def test_a_detection_of_spikes_goes_on_with_the_losses_before_the_resume(base, rows, tmp_path):
    losses = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer, module, outputs, *args):
            losses.append(outputs["loss"].item())

    saves, running = SaveAt(4, tmp_path / "4.ckpt"), Running()
    fit(base, rows, tmp_path / "run", callbacks=[SpikeDetection(), Losses(), saves])
    mean = sum(losses[:4]) / 4
    options = {"callbacks": [SpikeDetection(), running], "ckpt_path": saves.path}
    fit(base, rows, tmp_path / "resumed", **options)
    assert running.mean.item() == pytest.approx(mean, rel=1e-6)  # four float32 losses


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"callbacks": [ModelPruning("l1_unstructured")]}, "merge the adapter"),
        ({"plugins": [DeepSpeedPrecision("32-true")]}, "give trainer.precision 32-true"),
        ({"model_registry": "me/model"}, "push"),
    ],
)
def test_a_trainer_of_lightnings_own_refuses_the_same(options, advice, base, rows, tmp_path):
    with pytest.raises(ValueError, match=advice):
        fit(base, rows, tmp_path / "run", **options)


def test_float64_is_that_of_the_checkpoint_when_training_goes_on(base, rows, tmp_path):
    read = {}

    class Reads(Callback):
        def on_fit_start(self, trainer, module):
            read.update({n: t.clone() for n, t in module.state_dict().items()})

    saves = SaveAt(4, tmp_path / "4.ckpt")
    kept = {}

    class Keeps(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == 4:
                kept.update({n: t.clone() for n, t in module.state_dict().items()})

    options = {"precision": "64-true", "max_steps": 5}
    fit(base, rows, tmp_path / "run", callbacks=[saves, Keeps()], **options)
    fit(base, rows, tmp_path / "on", callbacks=[Reads()], ckpt_path=saves.path, **options)
    assert {t.dtype for t in read.values()} == {torch.float64}
    assert_equal(read, kept)


def test_unfreezing_a_module_leaves_its_base_frozen_and_its_dropout_as_it_was(base):
    module = CausalLMModule(str(base), LoRA(r=2, lora_dropout=0.1))
    module.configure_model()
    before = {n: (p.requires_grad) for n, p in module.named_parameters()}
    modes = {n: part.training for n, part in module.named_modules()}
    assert len(set(before.values())) == len(set(modes.values())) == 2
    module.freeze()
    module.unfreeze()
    assert before == {n: p.requires_grad for n, p in module.named_parameters()}
    assert modes == {n: part.training for n, part in module.named_modules()}


def test_the_printed_config_has_the_values_of_enumerations(tmp_path):
    timer = "lightning.pytorch.callbacks.Timer"
    args = [f"--trainer.callbacks={timer}", "--print_config"]
    ((status, output, error),) = drive(tmp_path, [["fit", *args]])
    assert status == 0, error
    assert "interval: step" in output


def test_the_reason_why_a_class_cannot_be_made_is_told_without_the_types_that_it_is_not():
    message = (
        "Does not validate against any of the Union subtypes Subtypes: [<class 'a.B'>] Errors: "
        "- Not a valid subclass of B Subclass types expect one of: - a class path (str) - Import "
        "path x.Y does not correspond to a subclass of B - Did not find `Z` Given value type: "
        "<class 'N'> Given value: N(class_path='x.Y') - Expected a <class 'NoneType'>"
    )
    assert reason_in_union(message) == "Y: Did not find `Z`"
    assert reason_in_union("another error") == "another error"
