"""Classes and lines of Python that the cases of the table in docs/lightning.md use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Callback,
    Checkpoint,
    OnExceptionCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.hooks import CheckpointHooks, ModelHooks
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils.data import DataLoader

from peft_lightning import CausalLMModule, LoRA, SFTDataModule, Trainer
from tiny_run import fit, flat_batch

QUIET = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "max_epochs": 2}
PLAIN = {"precision": "32-true", "gradient_clip_val": None}
OF_LOADING = "test_what_was_configured_is_restored"


def parts(base: Path, rows: Path, folder: Path, **data: Any) -> tuple[Any, Any]:
    """Return a module and the data of all stages."""
    L.seed_everything(0, verbose=False)
    module = CausalLMModule(str(base), LoRA(r=2), learning_rate=1e-2, predict_max_new_tokens=2)
    splits = {name: str(rows) for name in ("train", "val", "test", "predict")}
    cache = str(folder.parent / "cache")
    return module, SFTDataModule(**{**splits, "batch_size": 2, "cache_dir": cache, **data})


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return Trainer(default_root_dir=folder, **{**QUIET, **PLAIN, **options})


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- classes ---------------------------------------------------------------------------------


class EveryHook(Callback):
    """Has every hook of a callback, and a state."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"calls": list(self.calls)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = ["loaded", *state_dict["calls"]]


def _recorded(name: str) -> Any:
    return lambda self, *args, **kwargs: self.calls.append(name)


CALLBACK_HOOKS = [n for n in vars(Callback) if n.startswith("on_") or n in ("setup", "teardown")]
for _name in CALLBACK_HOOKS:
    setattr(EveryHook, _name, _recorded(_name))


def hooks_were_called(trainer: L.Trainer) -> bool:
    """Return whether the hooks of a fit were called, but for those that it has no reason to."""
    (callback,) = [c for c in trainer.callbacks if isinstance(c, EveryHook)]
    others = ("test", "predict", "exception", "load", "sanity")
    return {n for n in CALLBACK_HOOKS if not any(o in n for o in others)} <= set(callback.calls)


class WithBackbone(CausalLMModule):
    """Names the last layer and the last norm of the base its backbone."""

    def configure_model(self) -> None:
        is_new = self.model is None
        super().configure_model()
        if is_new:
            self.built_norm = self.model.model.norm.weight.detach().clone()

    @property
    def backbone(self) -> Any:
        return self.model.model.norm


class OwnCheckpoint(Checkpoint):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint("own.ckpt")


class OwnBar(ProgressBar):
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Path("bar").touch()

    def disable(self) -> None:
        pass


class OwnLogger(Logger):
    name, version = "own", 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        Path("own.log").write_text(json.dumps(sorted(metrics)))


class OwnProfiler(Profiler):
    def start(self, action_name: str) -> None:
        Path("actions").touch()

    def stop(self, action_name: str) -> None:
        pass


class OwnStrategy(SingleDeviceStrategy):
    def __init__(self) -> None:
        super().__init__("cpu")


class AllHooks(CausalLMModule):
    """Overrides every hook that computes nothing, and calls no super()."""

    calls: ClassVar[list[str]] = []


def _forgetful(name: str) -> Any:
    return lambda self, *args, **kwargs: [] if name == "configure_callbacks" else None


QUIET_HOOKS = ["configure_callbacks", "prepare_data", "setup", "teardown"]
QUIET_HOOKS += [n for k in (ModelHooks, CheckpointHooks) for n in vars(k) if n.startswith("on_")]
for _name in QUIET_HOOKS:
    setattr(AllHooks, _name, _forgetful(_name))

STEP_HOOKS = [
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "backward",
    "configure_gradient_clipping",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
]


class StepHooks(CausalLMModule):
    """Overrides what Lightning does around a step, as its documentation shows it."""

    def optimizer_step(self, epoch: Any, batch_idx: Any, optimizer: Any, closure: Any) -> None:
        optimizer.step(closure=closure)

    def optimizer_zero_grad(self, epoch: Any, batch_idx: Any, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()

    def backward(self, loss: Any) -> None:
        loss.backward()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return {k: v.to(device) if hasattr(v, "to") else v for k, v in batch.items()}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch

    on_after_batch_transfer = on_before_batch_transfer


class OldName(CausalLMModule):
    def configure_sharded_model(self) -> None:
        pass


class Calls(CausalLMModule):
    """Calls in its step what a module of Lightning can be asked to do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        self.lr_schedulers()
        self.toggle_optimizer(optimizer)
        self.untoggle_optimizer(optimizer)
        with self.toggled_optimizer(optimizer):
            loss = super().training_step(batch, batch_idx)
        self.log("own/value", 1.0)
        self.log_dict({"own/loss": loss.detach()})
        self.print("in a step")
        assert self.all_gather(loss.detach()).numel() == 1
        self.clip_gradients(optimizer, 1.0, "norm")
        return loss


# ---- lines of Python -------------------------------------------------------------------------


def test_is_limited(base: Path, rows: Path, folder: Path) -> None:
    seen: list[int] = []

    class Counts(Callback):
        def on_test_batch_end(self, *args: Any) -> None:
            seen.append(1)

    module, data = parts(base, rows, folder)
    trainer(folder, limit_test_batches=1, callbacks=[Counts()]).test(module, data)
    assert len(seen) == 1


def predict_is_limited(base: Path, rows: Path, folder: Path) -> None:
    module, data = parts(base, rows, folder)
    (answers,) = trainer(folder, limit_predict_batches=1).predict(module, data)
    assert len(answers) == 2


def a_writer_writes(base: Path, rows: Path, folder: Path) -> None:
    class Writer(BasePredictionWriter):
        def write_on_batch_end(
            self,
            trainer: Any,
            module: Any,
            prediction: Any,
            indices: Any,
            batch: Any,
            i: int,
            j: int,
        ) -> None:
            (folder / f"{i}.json").write_text(json.dumps([a["index"] for a in prediction]))

    module, data = parts(base, rows, folder)
    folder.mkdir()
    found = trainer(folder, callbacks=[Writer("batch")]).predict(
        module, data, return_predictions=True
    )
    written = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    assert written == [[answer["index"] for answer in batch] for batch in found]
    assert sum(map(len, written)) == 6


def a_run_goes_on_from_its_exception(base: Path, rows: Path, folder: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 4:
                raise KeyError("broken")

    options = {"adapter": LoRA(r=2, lora_dropout=0.1), "data": {"batch_size": 2}}
    whole = fit(base, rows, folder / "whole", **options)
    saves = OnExceptionCheckpoint(folder)
    with pytest.raises(KeyError, match="broken"):
        fit(base, rows, folder / "broken", callbacks=[saves, Breaks()], **options)
    resumed = fit(base, rows, folder / "resumed", ckpt_path=saves.ckpt_path, **options)
    assert resumed.global_step == whole.global_step == 6
    assert_equal(resumed.lightning_module.state_dict(), whole.lightning_module.state_dict())


def fit_goes_on(base: Path, rows: Path, folder: Path) -> None:
    module, data = parts(base, rows, folder)
    run = trainer(folder, max_epochs=1)
    run.fit(module, data)
    assert run.global_step == 3
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run.fit_loop.max_epochs = 2
    run.fit(module, data)
    assert run.global_step == 6
    assert any(not torch.equal(t, before[n]) for n, t in module.state_dict().items())


def fit_after_others(base: Path, rows: Path, folder: Path) -> None:
    ended = []
    for name, earlier in (("alone", ()), ("after", ("validate", "test", "predict"))):
        module, data = parts(base, rows, folder / name)
        run = trainer(folder / name)
        for method in earlier:
            getattr(run, method)(module, data)
        run.fit(module, data)
        ended.append(module.state_dict())
    assert_equal(*ended)


def a_checkpoint_is_validated(base: Path, rows: Path, folder: Path) -> None:
    module, data = parts(base, rows, folder)
    run = trainer(folder)
    run.fit(module, data)
    expected = run.callback_metrics["val/loss"].item()
    for method, name in (("validate", "val/loss"), ("test", "test/loss")):
        fresh, data = parts(base, rows, folder)
        last = str(folder / "checkpoints" / "last.ckpt")
        (found,) = getattr(trainer(folder), method)(fresh, data, ckpt_path=last, verbose=False)
        assert found[name] == expected, name


def weights_alone_are_saved(base: Path, rows: Path, folder: Path) -> None:
    module, data = parts(base, rows, folder)
    run = trainer(folder, max_steps=2)
    run.fit(module, data)
    run.save_checkpoint(folder / "weights.ckpt", weights_only=True)
    loaded = CausalLMModule.load_from_checkpoint(folder / "weights.ckpt")
    assert_equal(loaded.state_dict(), module.state_dict())


def a_module_is_made_in_place(base: Path, rows: Path, folder: Path) -> None:
    run = trainer(folder, precision="64-true")
    with run.init_module():
        module = CausalLMModule(str(base), LoRA(r=2))
    _, data = parts(base, rows, folder)
    run.fit(module, data)
    assert {t.dtype for t in module.state_dict().values()} == {torch.float64}


def trainer_prints(base: Path, rows: Path, folder: Path) -> None:
    trainer(folder).print("done")


class WithLoaders(CausalLMModule):
    """Has its loaders itself, as Lightning's modules may."""

    def train_dataloader(self) -> Any:
        return DataLoader([flat_batch([9, 7], seed=i) for i in range(3)], batch_size=None)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    def predict_step(self, batch: Any, batch_idx: int) -> int:
        return batch["input_ids"].numel()


def a_module_has_loaders(base: Path, rows: Path, folder: Path) -> None:
    module = WithLoaders(str(base), LoRA(r=2), learning_rate=1e-2)
    run = trainer(folder)
    run.fit(module)
    assert run.global_step == 6
    (validated,), (tested,) = run.validate(module), run.test(module)
    assert validated["val/loss"] == tested["test/loss"]
    assert run.predict(module) == [16, 16, 16]


own_predict_step = a_module_has_loaders


def forward_is_not_defined(base: Path, rows: Path, folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="forward"):
        CausalLMModule(str(base), LoRA(r=2))(flat_batch([5]))


def frozen_and_unfrozen(base: Path, rows: Path, folder: Path) -> None:
    """A module that was frozen for answers trains as if it had not been."""
    ended = []
    for name, is_frozen in (("plain", False), ("frozen", True)):
        module, data = parts(base, rows, folder / name)
        module.configure_model()
        trained = [n for n, p in module.named_parameters() if p.requires_grad]
        if is_frozen:
            module.freeze()
            assert not any(p.requires_grad for p in module.parameters())
            module.unfreeze()
            assert [n for n, p in module.named_parameters() if p.requires_grad] == trained
        trainer(folder / name).fit(module, data)
        ended.append(module.state_dict())
    assert_equal(*ended)


def export_is_named(base: Path, rows: Path, folder: Path) -> None:
    module = CausalLMModule(str(base), LoRA(r=2))
    for method in (module.to_onnx, module.to_torchscript, module.to_tensorrt):
        with pytest.raises(ValueError, match="python -m peft_lightning merge"):
            method("model.onnx")


class OwnCLI(LightningCLI):
    def add_arguments_to_parser(self, parser: Any) -> None:
        parser.add_argument("--rate", type=float, default=0.5)
        parser.link_arguments("rate", "model.learning_rate")


def a_cli_of_ones_own(base: Path, rows: Path, folder: Path) -> None:
    args = {
        "rate": 0.02,
        "model.base_model": base,
        "model.adapter": "LoRA",
        "data.train": rows,
        "data.cache_dir": folder / "cache",
        "trainer.default_root_dir": folder,
        "trainer.max_steps": 2,
        "trainer.accelerator": "cpu",
        "trainer.logger": "false",
    }
    cli = OwnCLI(
        CausalLMModule,
        SFTDataModule,
        args=["fit", *(f"--{name}={value}" for name, value in args.items())],
        auto_configure_optimizers=False,
    )
    assert cli.trainer.global_step == 2
    assert cli.model.learning_rate == 0.02
    assert (folder / "checkpoints" / "last.ckpt" / "adapter_config.json").is_file()
    assert (folder / "config.yaml").is_file()
