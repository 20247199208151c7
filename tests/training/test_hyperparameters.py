"""Hyperparameters are plain values in hparams, in checkpoints and in every logger, by default."""

import functools
import threading
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger

from cli_driver import drive
from peft_lightning import CausalLMModule, Constant, LoRA, SFTDataModule
from peft_lightning.hyperparameters import plain, without_rows, without_secrets
from peft_lightning.training.logged_hyperparameters import run_hyperparameters
from tiny_run import fit

SECRET = "hf_" + "a" * 30


class Side(Enum):
    LEFT = "left"
    RIGHT = "right"


@dataclass
class Head:
    width: int = 4
    folder: Path = Path("heads")


def halved(value):
    return value / 2


class Experiment(CausalLMModule):
    """A user's module with options of every kind, which it saves as Lightning's docs show."""

    def __init__(
        self,
        base_model: str,
        adapter=LoRA(r=2),  # noqa: B008
        alpha: float = 0.5,
        side: Side = Side.LEFT,
        folder: Path | None = None,
        head: Head | None = None,
        change=None,
        api_key: str | None = None,
        **kwargs,
    ):
        super().__init__(base_model, adapter, **kwargs)
        self.save_hyperparameters()
        self.alpha, self.side, self.folder, self.head = alpha, side, folder, head
        self.change, self.api_key = change, api_key


RICH = {
    "alpha": np.float64(0.7),
    "side": Side.RIGHT,
    "folder": Path("some/where"),
    "head": Head(8),
    "change": halved,
}


class Wrapped(dict):
    """A dict that torch's reader of plain values refuses."""


def path_of(value):
    return f"{value.__module__}.{value.__qualname__}"


def is_plain(value):
    if type(value) is dict:
        return all(type(k) is str and is_plain(v) for k, v in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Path("a") / "b", "a/b"),
        (Side.LEFT, {"import_path": f"{path_of(Side)}.LEFT"}),
        (np.float64(0.5), 0.5),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.tensor(2.0), 2.0),
        (torch.float32, "torch.float32"),
        (torch.device("cpu"), "cpu"),
        ((1, "a"), [1, "a"]),
        ({"b", "a"}, ["a", "b"]),
        ({Side.LEFT: (Path("x"),)}, {"LEFT": ["x"]}),
        (Constant(2), {"class_path": path_of(Constant), "init_args": {"warmup": 2}}),
        (torch.optim.SGD, {"import_path": path_of(torch.optim.SGD)}),
        (halved, {"import_path": path_of(halved)}),
        (lambda x: x, {"not_saved": f"<lambda> of {__name__}"}),
        (threading.Lock(), {"not_saved": "a lock of _thread"}),
        (list(range(1001)), {"not_saved": "a list of 1,001 values"}),
        (np.zeros(1001), {"not_saved": "a ndarray of numpy"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_becomes_what_yaml_would_say(value, expected):
    found = plain(value)
    if isinstance(value, type(lambda: 0)) and "lambda" in value.__qualname__:
        expected = {"not_saved": f"{value.__qualname__} of {__name__}"}
    assert found == expected
    assert type(found) is type(expected)
    assert is_plain(found)


def test_a_partial_becomes_its_class_and_arguments():
    partial = functools.partial(torch.optim.SGD, lr=np.float32(0.5))
    assert plain(partial) == {"class_path": path_of(torch.optim.SGD), "init_args": {"lr": 0.5}}


def test_hparams_hold_all_arguments_of_module_and_data_without_any_call(base, rows):
    class Own(CausalLMModule):
        def __init__(self, base_model: str, alpha: float = 0.5, **kwargs):
            super().__init__(base_model, **kwargs)

    module = Own(str(base), alpha=0.75, adapter=LoRA(r=3), learning_rate=0.5)
    assert is_plain(dict(module.hparams))
    assert module.hparams["alpha"] == 0.75
    assert module.hparams.learning_rate == 0.5
    assert module.hparams["adapter"]["init_args"]["r"] == 3
    assert module.hparams["lr_schedule"]["class_path"].endswith("Cosine")
    assert module.hparams_initial == module.hparams
    data = SFTDataModule(str(rows), batch_size=3)
    assert is_plain(dict(data.hparams))
    assert data.hparams["train"] == str(rows)
    assert data.hparams.batch_size == 3


def test_rows_in_hand_are_data_and_no_hyperparameter():
    hand = [{"prompt": "a", "completion": "b"}] * 2
    assert without_rows(["a.jsonl", hand]) == ["a.jsonl", {"not_saved": "2 rows"}]
    assert without_rows({"home": hand}) == {"home": {"not_saved": "2 rows"}}
    assert without_rows({"a.jsonl": 0.5}) == {"a.jsonl": 0.5}
    data = SFTDataModule(test={"home": hand}, columns={"prompt": "question"})
    assert data.hparams["test"] == {"home": {"not_saved": "2 rows"}}
    assert data.hparams["columns"] == {"prompt": "question"}


def test_what_is_ignored_is_not_in_hparams(base):
    class Own(CausalLMModule):
        def __init__(self, base_model: str, alpha: float = 0.5):
            super().__init__(base_model)
            self.save_hyperparameters(ignore=["alpha"])

    assert "alpha" not in Own(str(base)).hparams


def test_hyperparameters_of_any_kind_are_plain_in_a_checkpoint_and_do_not_break_a_resume(
    base, rows, tmp_path
):
    options = {"module": {**RICH, "api_key": SECRET}, "module_class": Experiment}
    fit(base, rows, tmp_path / "run", max_epochs=1, **options)
    last = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(last / "trainer_state.pt", weights_only=True)
    saved = state["hyper_parameters"]
    assert is_plain(saved)
    assert saved["alpha"] == 0.7
    assert saved["side"] == {"import_path": f"{path_of(Side)}.RIGHT"}
    assert saved["head"]["init_args"] == {"width": 8, "folder": "heads"}
    assert saved["adapter"]["init_args"]["r"] == 2
    assert is_plain(state["datamodule_hyper_parameters"])
    resumed = fit(base, rows, tmp_path / "run", max_epochs=2, ckpt_path=str(last), **options)
    assert resumed.global_step == 12


def test_hparams_that_are_set_later_are_plain_in_a_checkpoint_too(base, rows, tmp_path):
    class Own(CausalLMModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.hparams["where"] = Path("x")

    fit(base, rows, tmp_path / "run", max_steps=1, module_class=Own)
    last = tmp_path / "run/checkpoints/last.ckpt"
    state = torch.load(last / "trainer_state.pt", weights_only=True)
    assert state["hyper_parameters"]["where"] == "x"


def test_a_secret_is_in_hparams_alone(base, rows, tmp_path):
    options = {"module": {"api_key": SECRET}, "module_class": Experiment, "max_steps": 1}
    trainer = fit(base, rows, tmp_path / "run", logger=CSVLogger(tmp_path), **options)
    assert trainer.lightning_module.hparams.api_key == SECRET
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file
    logged = logged_by_csv(trainer)
    assert logged["model"]["api_key"] == {"not_saved": "a secret"}
    assert without_secrets(["https://me:word@host"]) == [{"not_saved": "a secret"}]


def logged_by_csv(trainer):
    return yaml.safe_load(Path(trainer.logger.log_dir, "hparams.yaml").read_text())


def test_model_data_trainer_and_optimizer_are_logged_readably(base, rows, tmp_path):
    module = {"learning_rate": None, "lr_schedule": Constant(2)}
    options = {"max_steps": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    data = {"columns": {"prompt of": "x"}, "format": "auto"}
    trainer = fit(
        *(base, rows, tmp_path / "run"),
        module=module,
        data={},
        logger=CSVLogger(tmp_path),
        seed=7,
        **options,
    )
    logged = logged_by_csv(trainer)
    assert logged["model"]["class"] == "CausalLMModule"
    assert logged["model"]["base_model"] == str(base)
    adapter = logged["model"]["adapter"]
    assert (adapter["class"], adapter["r"], adapter["lora_alpha"]) == ("LoRA", 2, 32)
    assert logged["model"]["lr_schedule"] == {"class": "Constant", "warmup": 2}
    assert logged["model"]["learning_rate"] == LoRA.learning_rate  # which was not given
    assert logged["optimizer"]["class"] == "AdamW"
    assert logged["optimizer"]["lr"] == LoRA.learning_rate  # not the half of it that warm-up uses
    assert logged["data"]["train"] == str(rows)
    assert logged["data"]["batch_size"] == 4
    assert {name: logged["trainer"][name] for name in options} == options
    assert logged["trainer"]["seed"] == 7
    trainer.datamodule.hparams.update(data)
    assert run_hyperparameters(trainer)["data"]["columns"] == '{"prompt of": "x"}'


def test_they_are_logged_once_a_run_and_before_any_metric(base, rows, tmp_path):
    class Records(CSVLogger):
        def __init__(self, *args):
            super().__init__(*args)
            self.calls = []

        def log_hyperparams(self, params=None):
            self.calls.append("hyperparameters")
            super().log_hyperparams(params)

        def log_metrics(self, metrics, step=None):
            self.calls.append("metrics")
            super().log_metrics(metrics, step)

    trainer = fit(base, rows, tmp_path / "run", logger=(logger := Records(tmp_path)))
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)
    assert logger.calls[0] == "hyperparameters"
    assert logger.calls.count("hyperparameters") == 1


def test_a_validation_alone_logs_them_too(base, rows, tmp_path):
    module = CausalLMModule(str(base), LoRA(r=2))
    data = SFTDataModule(str(rows), val=str(rows), cache_dir=str(tmp_path / "cache"))
    trainer = L.Trainer(accelerator="cpu", logger=CSVLogger(tmp_path), enable_progress_bar=False)
    trainer.validate(module, data, verbose=False)
    assert logged_by_csv(trainer)["model"]["adapter"]["r"] == 2


def test_save_hyperparameters_without_loggers_is_honoured(base, rows, tmp_path):
    class Quiet(CausalLMModule):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.save_hyperparameters(logger=False)

    options = {"max_steps": 1, "logger": CSVLogger(tmp_path), "module_class": Quiet}
    trainer = fit(base, rows, tmp_path / "run", **options)
    assert logged_by_csv(trainer).keys() == {"data", "trainer", "optimizer"}
    off = {**options, "logger": CSVLogger(tmp_path), "enable_autolog_hparams": False}
    trainer = fit(base, rows, tmp_path / "off", **off)
    assert not (Path(trainer.logger.log_dir) / "hparams.yaml").exists() or not logged_by_csv(
        trainer
    )


def test_the_command_line_logs_what_python_logs(base, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}, "
        "learning_rate: 0.01}\n"
        "data: {train: rows.jsonl, batch_size: 4, cache_dir: cache}\n"
        "trainer: {accelerator: cpu, max_steps: 1}\n"
    )
    [(status, _, errors)] = drive(tmp_path, [["fit", "--config", "run.yaml"]])
    assert status == 0, errors
    file = tmp_path / "runs/run/logs/version_0/hparams.yaml"
    by_command = yaml.safe_load(file.read_text())
    trainer = fit(base, rows, tmp_path / "run", max_steps=1, logger=CSVLogger(tmp_path))
    by_python = logged_by_csv(trainer)
    assert by_command["model"] == by_python["model"]
    changed = {"train", "cache_dir"}  # which are other paths here
    for name, value in by_python["data"].items():
        assert name in changed or by_command["data"][name] == value, name
    assert by_command["optimizer"] == by_python["optimizer"]
    assert by_command["trainer"].keys() == by_python["trainer"].keys()
