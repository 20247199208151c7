"""What a subclass may do as Lightning's documentation shows it: any hook, without super()."""

import json
from typing import ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn

from cli_driver import drive
from exactness import defined, train
from peft_lightning import CausalLMModule, LoRA
from tiny_run import fit, write_base, write_rows

CUTS = {
    "a batch of 8": {"data": {"batch_size": 8}},
    "8 batches of 1": {"data": {"batch_size": 1}, "accumulate_grad_batches": 8},
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def ten_rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("ten") / "rows.jsonl", 10)


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)


class AllHooks(CausalLMModule):
    """Overrides every hook of Lightning that does not compute anything, and calls no super()."""

    calls: ClassVar[list[str]] = []


def _forgetful(name):
    def hook(self, *args, **kwargs):
        AllHooks.calls.append(name)
        return [] if name == "configure_callbacks" else None

    return hook


HOOKS = [
    "configure_callbacks",
    "setup",
    "teardown",
    "on_fit_start",
    "on_fit_end",
    "on_train_start",
    "on_train_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_validation_start",
    "on_validation_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_model_eval",
    "on_validation_model_train",
    "on_save_checkpoint",
    "on_load_checkpoint",
    "on_test_start",
    "on_test_end",
    "on_test_epoch_start",
    "on_test_epoch_end",
    "on_sanity_check_start",
    "prepare_data",
]
for _name in HOOKS:
    if hasattr(L.LightningModule, _name):
        setattr(AllHooks, _name, _forgetful(_name))


@pytest.mark.parametrize("cut", CUTS)
def test_every_hook_may_be_overridden_without_super(cut, gpt2, ten_rows, tmp_path):
    AllHooks.calls.clear()
    options = {**CUTS[cut], "module_class": AllHooks, "enable_checkpointing": True}
    options["data"] = {**options["data"], "val": str(ten_rows)}
    trainer, ours = train(gpt2, ten_rows, tmp_path / "run", **options)
    assert_same(ours, defined(gpt2, ten_rows, [8, 2]))
    assert {"setup", "on_before_optimizer_step", "on_save_checkpoint"} <= set(AllHooks.calls)
    assert {"train/loss", "grad_norm", "val/loss"} <= trainer.callback_metrics.keys()
    folder = tmp_path / "run" / "checkpoints"
    assert (folder / "best.ckpt" / "adapter_config.json").is_file()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"
    resumed, after = train(
        gpt2, ten_rows, tmp_path / "run", ckpt_path=str(folder / "last.ckpt"), **options
    )
    assert resumed.global_step == trainer.global_step
    for name, tensor in ours.items():  # nothing is left to train; a checkpoint is read as float32
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_loss_of_a_step_is_the_mean_over_its_tokens_for_everybody_who_looks(
    gpt2, ten_rows, tmp_path
):
    seen = {}

    class Looks(Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            seen["before_backward"] = float(loss)

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen["grads"] = [p.grad.clone() for p in pl_module.trainable_parameters()]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen["outputs"] = float(outputs["loss"])

    options = {"data": {"batch_size": 8}, "max_steps": 1, "callbacks": [Looks()]}
    trainer, _ = train(gpt2, ten_rows, tmp_path / "run", **options)
    logged = float(trainer.callback_metrics["train/loss"])
    assert seen["outputs"] == pytest.approx(logged, rel=1e-6)  # logged as float32
    assert seen["before_backward"] == seen["outputs"]
    norms = []
    defined(gpt2, ten_rows, [8], lambda grads: (norms.append(grads), grads)[1])
    for grad, expected in zip(seen["grads"], norms[0], strict=True):
        torch.testing.assert_close(grad.double(), expected.double(), rtol=1e-9, atol=1e-12)


class Penalty(CausalLMModule):
    """Adds a term of its own to the loss, as Lightning's users do."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + 0.5 * sum(p.sum() for p in self.trainable_parameters())


class PenaltyInADict(Penalty):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "batch_idx": batch_idx}


@pytest.mark.parametrize("cls", [Penalty, PenaltyInADict])
@pytest.mark.parametrize("cut", CUTS)
def test_a_term_that_is_added_to_the_loss_has_its_own_gradient(cut, cls, gpt2, ten_rows, tmp_path):
    _, ours = train(gpt2, ten_rows, tmp_path / "run", module_class=cls, **CUTS[cut])
    expected = defined(gpt2, ten_rows, [8, 2], lambda grads: [g + 0.5 for g in grads])
    assert_same(ours, expected)


# ---- a training_step of one's own ------------------------------------------------------------


class OwnMean(CausalLMModule):
    def training_step(self, batch, batch_idx):
        nll, count = self.nll(batch)
        return nll / count


class OwnCounted(CausalLMModule):
    def training_step(self, batch, batch_idx):
        return self.mean_loss(*self.nll(batch), batch)


class SometimesCounted(CausalLMModule):
    def training_step(self, batch, batch_idx):
        return (OwnMean if batch_idx % 2 else OwnCounted).training_step(self, batch, batch_idx)


class Manual(CausalLMModule):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        nll, count = self.nll(batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nll / count)
        optimizer.step()
        self.lr_schedulers().step()


@pytest.mark.parametrize("cls", [OwnMean, OwnCounted, Manual])
def test_a_training_step_that_returns_a_mean_of_its_own_trains(cls, gpt2, ten_rows, tmp_path):
    options = {"data": {"batch_size": 8}, "module_class": cls}
    trainer, ours = train(gpt2, ten_rows, tmp_path / "run", **options)
    assert_same(ours, defined(gpt2, ten_rows, [8, 2]))
    assert "grad_norm" in trainer.callback_metrics


def test_means_that_do_not_say_their_tokens_count_alike_which_is_said(
    gpt2, ten_rows, tmp_path, capsys, caplog
):
    options = {"data": {"batch_size": 1}, "accumulate_grad_batches": 8, "module_class": OwnMean}
    with caplog.at_level("INFO"):
        train(gpt2, ten_rows, tmp_path / "run", max_steps=1, **options)
    said = [
        r.message
        for r in caplog.records
        if "OwnMean does not say over how many tokens" in r.message
    ]
    assert len(said) == 1
    assert "self.mean_loss(nll, tokens, batch)" in said[0]


def test_a_step_whose_micro_batches_are_counted_only_in_part_is_refused(gpt2, ten_rows, tmp_path):
    options = {"data": {"batch_size": 4}, "accumulate_grad_batches": 2}
    with pytest.raises(ValueError, match="SometimesCounted counts the tokens of some micro-batch"):
        train(gpt2, ten_rows, tmp_path / "run", module_class=SometimesCounted, **options)


# ---- optimizers of one's own -----------------------------------------------------------------


class OwnAdamW(CausalLMModule):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.trainable_parameters(), lr=1e-2)


class Plateau(CausalLMModule):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.trainable_parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val/loss", "strict": False},
        }


class OneCycle(CausalLMModule):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.trainable_parameters(), lr=1e-2, momentum=0.9)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class TwoGroups(CausalLMModule):
    def configure_optimizers(self):
        first, *rest = self.trainable_parameters()
        return torch.optim.AdamW([{"params": [first], "lr": 1e-1}, {"params": rest}], lr=1e-2)


class MoreGroups(CausalLMModule):
    def configure_model(self):
        is_new = self.model is None
        super().configure_model()
        if is_new:
            self.scale = nn.Parameter(torch.ones(()))

    def nll(self, batch):
        nll, count = super().nll(batch)
        return nll * self.scale, count

    def trainable_parameters(self):
        return [p for p in super().trainable_parameters() if p is not self.scale]

    def configure_optimizers(self):
        configured = super().configure_optimizers()
        configured["optimizer"].add_param_group({"params": [self.scale], "lr": 1e-3})
        return configured


OPTIMIZERS = [OwnAdamW, Plateau, OneCycle, TwoGroups, MoreGroups]


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_configure_optimizers_may_be_overridden_in_any_form_and_resumes_bit_for_bit(
    cls, base, rows, tmp_path
):
    options = {"module_class": cls, "data": {"val": str(rows)}}
    saves = SaveAt(4, tmp_path / "4.ckpt")
    whole = fit(base, rows, tmp_path / "whole", callbacks=[saves], **options)
    assert whole.global_step == 12
    resumed = fit(base, rows, tmp_path / "resumed", ckpt_path=saves.path, **options)
    assert resumed.global_step == 12
    assert_equal(whole.lightning_module.state_dict(), resumed.lightning_module.state_dict())


class SaveAt(Callback):
    """Saves a checkpoint after some steps."""

    def __init__(self, step, path):
        self.step, self.path = step, str(path)

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- what a subclass adds --------------------------------------------------------------------


class WithHead(CausalLMModule):
    """Has a part of its own that is trained, a buffer that changes and unfreezes a norm."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        torch.manual_seed(5)
        self.head = nn.Linear(32, 1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def configure_model(self):
        super().configure_model()
        self.model.model.norm.weight.requires_grad_(True)

    def nll(self, batch):
        nll, count = super().nll(batch)
        self.seen += 1
        hidden = self.model.get_input_embeddings()(batch["input_ids"])
        return nll + (self.head(hidden) + self.bias).square().sum(), count


ADDED = {"head.weight", "head.bias", "bias", "seen", "model.model.norm.weight"}


def test_what_a_subclass_adds_is_saved_and_restored_bit_for_bit(base, rows, tmp_path):
    options = {"module_class": WithHead, "data": {"val_fraction": 0}}
    saves = SaveAt(4, tmp_path / "4.ckpt")
    whole = fit(base, rows, tmp_path / "whole", callbacks=[saves], **options)
    state = whole.lightning_module.state_dict()
    assert state.keys() >= ADDED
    start = WithHead(str(base)).head.weight
    assert not torch.equal(start, state["head.weight"])
    facts = json.loads((tmp_path / "4.ckpt" / "peft_lightning.json").read_text())
    assert set(facts["added_tensors"]) == ADDED
    resumed = fit(base, rows, tmp_path / "resumed", ckpt_path=saves.path, **options)
    assert_equal(state, resumed.lightning_module.state_dict())
    assert resumed.lightning_module.seen == whole.lightning_module.seen
    last = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    assert_equal(state, WithHead.load_from_checkpoint(last).state_dict())
    with pytest.raises(ValueError, match=r"unexpected in the file: .*head"):
        CausalLMModule.load_from_checkpoint(last)


@pytest.mark.parametrize("command", ["generate", "merge", "export", "fit"])
def test_a_folder_with_trained_weights_of_the_base_is_refused_where_they_would_be_missing(
    command, base, rows, tmp_path
):
    options = {"module_class": WithHead, "data": {"val_fraction": 0}, "max_steps": 1}
    fit(base, rows, tmp_path / "run", **options)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    args = {
        "generate": ["generate", f"--ckpt_path={last}", "--prompt=hello"],
        "merge": ["merge", last, "merged"],
        "export": ["export", last, "model.gguf"],
        "fit": [
            "fit",
            f"--model.base_model={base}",
            f"--model.init_from={last}",
            f"--data.train={rows}",
        ],
    }
    ((status, _, error),) = drive(tmp_path, [args[command]])
    assert status == 2
    assert "model.model.norm.weight" in error
    assert "load_from_checkpoint" in error


def test_a_checkpoint_without_what_a_subclass_adds_is_refused(base, rows, tmp_path):
    fit(base, rows, tmp_path / "run", max_steps=1)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"missing in the file: .*head"):
        fit(base, rows, tmp_path / "other", module_class=WithHead, ckpt_path=last)


class Outer(L.LightningModule):
    """A module of a user's own with ours as a part."""

    def __init__(self, base):
        super().__init__()
        self.policy = CausalLMModule(str(base), LoRA(r=2))
        self.value = nn.Linear(2, 1)

    def configure_model(self):
        self.policy.configure_model()

    def training_step(self, batch, batch_idx):
        nll, count = self.policy.nll(batch)
        return nll / count + self.value.weight.square().sum()

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def outer_run(base, loader, root, **options):
    L.seed_everything(0, verbose=False)
    runner = L.Trainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=options.pop("max_steps", 4),
    )
    runner.fit(Outer(base), loader, **options)
    return runner


def test_a_module_that_is_part_of_another_is_in_its_state(base, tmp_path):
    from tiny_run import flat_batch

    loader = torch.utils.data.DataLoader(
        [flat_batch([9, 7], seed=i) for i in range(4)], batch_size=None
    )
    whole = outer_run(base, loader, tmp_path / "whole")
    state = whole.lightning_module.state_dict()
    assert "policy.base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight" in state
    assert not any(".embed_tokens." in name for name in state)
    whole.save_checkpoint(tmp_path / "plain.ckpt")
    fresh = Outer(base)
    fresh.configure_model()
    saved = torch.load(tmp_path / "plain.ckpt", weights_only=True)["state_dict"]
    result = fresh.load_state_dict(saved)
    assert result.missing_keys == result.unexpected_keys == []
    assert_equal(fresh.state_dict(), state)
    for name in list(saved):
        part = {n: t for n, t in saved.items() if n != name}
        with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
            fresh.load_state_dict(part)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*policy\.more"):
        fresh.load_state_dict({**saved, "policy.more": torch.zeros(1)})


@pytest.mark.parametrize("averaging", ["EMA", "SWA"])
def test_averaged_weights_reach_a_checkpoint_folder_and_resume_bit_for_bit(
    averaging, base, rows, tmp_path
):
    from safetensors.torch import load_file

    defined = {}

    class Averages(Callback):
        """The definition: with EMA half of the old and half of the new, with SWA the mean."""

        def on_train_start(self, trainer, module):
            if averaging == "EMA":
                defined.update({n: t.clone() for n, t in module.state_dict().items()})

        def on_train_batch_end(self, trainer, module, *args):
            if averaging == "EMA":
                is_first = trainer.global_step == 1  # which Lightning takes for the average
                for name, tensor in module.state_dict().items():
                    defined[name] = tensor if is_first else (defined[name] + tensor) / 2
                    defined[name] = defined[name].clone()

        def on_train_epoch_start(self, trainer, module):
            if averaging == "SWA":
                n = trainer.current_epoch
                for name, tensor in module.state_dict().items():
                    defined[name] = (n * defined.get(name, 0.0) + tensor) / (n + 1)

    def callbacks(*more):
        if averaging == "EMA":
            return [EMAWeightAveraging(decay=0.5), *more]
        return [StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1), *more]

    options = {"data": {"val": str(rows)}}
    saves = SaveAt(8, tmp_path / "8.ckpt")
    whole = fit(base, rows, tmp_path / "whole", callbacks=callbacks(saves, Averages()), **options)
    averaged = whole.lightning_module.state_dict()
    file = tmp_path / "whole" / "checkpoints" / "last.ckpt" / "adapter_model.safetensors"
    assert_equal(load_file(file), averaged)
    for name, tensor in averaged.items():
        torch.testing.assert_close(tensor, defined[name])
    root = tmp_path / "resumed"
    again = fit(base, rows, root, callbacks=callbacks(), ckpt_path=saves.path, **options)
    assert_equal(again.lightning_module.state_dict(), averaged)


# ---- callbacks of Lightning beside ours ------------------------------------------------------


def test_a_model_checkpoint_of_the_users_stays_and_last_ckpt_is_kept_beside_it(
    base, rows, tmp_path
):
    own = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    trainer = fit(base, rows, tmp_path / "run", callbacks=[own])
    assert own in trainer.callbacks
    assert len(own.best_k_models) + len(list((tmp_path / "run").rglob("epoch=*"))) >= 6
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_dir()


def test_early_stopping_goes_on_in_a_resumed_run(base, rows, tmp_path):
    data = {"val": str(rows)}
    fit(base, rows, tmp_path / "run", callbacks=[EarlyStopping("val/loss")], data=data)
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    options = {"callbacks": [EarlyStopping("val/loss")], "max_epochs": 4, "data": data}
    assert fit(base, rows, tmp_path / "run", ckpt_path=last, **options).global_step == 24


def test_a_run_may_be_validated_before_it_is_trained(base, rows, tmp_path):
    from peft_lightning import SFTDataModule

    module = CausalLMModule(str(base), LoRA(r=2), learning_rate=1e-2)
    data = SFTDataModule(train=str(rows), val=str(rows), cache_dir=str(tmp_path / "cache"))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    runner = L.Trainer(default_root_dir=tmp_path / "run", max_steps=2, **options)
    before = runner.validate(module, data)[0]["val/loss"]
    runner.fit(module, data)
    another = L.Trainer(default_root_dir=tmp_path / "run", inference_mode=False, **options)
    after = another.validate(module, data)[0]["val/loss"]
    assert after < before


class OwnValidation(CausalLMModule):
    def validation_step(self, batch, batch_idx):
        self.log("my/score", float(batch_idx))


def test_a_validation_without_the_monitored_value_says_that_there_is_no_best_checkpoint(
    base, rows, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        fit(base, rows, tmp_path / "run", module_class=OwnValidation, data={"val": str(rows)})
    said = [r.message for r in caplog.records if "best.ckpt" in r.message]
    assert len(said) == 1
    assert "val/loss" in said[0]
    assert "my/score" in said[0]
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
