"""What each of Lightning's loggers writes of a run: hyperparameters, metrics and checkpoints."""

import contextlib
import json
import os
import sqlite3
import struct
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers import WandbLogger as LightningsWandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

import cli_driver
from cli_driver import drive
from peft_lightning import CausalLMModule, Trainer, UserError
from peft_lightning.training.trackio_logger import TrackioLogger
from tiny_run import CHECKPOINT_FILES, fit

TRACKIO = f"{TrackioLogger.__module__}.TrackioLogger"


def run(base, rows, tmp_path, logger, **options):
    options = {"max_epochs": 2, "log_every_n_steps": 1, **options}
    return fit(base, rows, tmp_path / "run", logger=logger, **options)


# ---- TensorBoard --------------------------------------------------------------------------------


def board(folder):
    """Return the scalars of a log folder, and what its HPARAMS tab is made from."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    plugin_data_pb2 = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")
    found = {
        name: plugin_data_pb2.HParamsPluginData.FromString(value) for name, value in content.items()
    }
    scalars = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return scalars, found


@pytest.mark.parametrize("default_hp_metric", [True, False])
def test_the_hparams_tab_of_tensorboard_shows_the_run_with_its_losses(
    base, rows, tmp_path, default_hp_metric
):
    logger = TensorBoardLogger(tmp_path, default_hp_metric=default_hp_metric)
    trainer = run(base, rows, tmp_path, logger)
    scalars, tab = board(logger.log_dir)
    experiment = tab["_hparams_/experiment"].experiment
    columns = [metric.name.tag for metric in experiment.metric_infos]
    assert columns[:2] == ["val/loss", "train/loss"]
    assert set(columns[:2]) <= scalars.keys()
    assert len(scalars["val/loss"]) == 2  # the validations', and no value beside them
    assert scalars["val/loss"][-1] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    assert "hp_metric" not in scalars
    assert (
        "hp_metric" in columns
    ) is default_hp_metric  # for a module that logs it, as Lightning's
    start = tab["_hparams_/session_start_info"].session_start_info.hparams
    assert start["model/adapter/class"].string_value == "LoRA"
    assert start["model/adapter/r"].number_value == 2
    assert start["model/learning_rate"].number_value == 0.01
    assert start["data/batch_size"].number_value == 4
    assert start["trainer/max_epochs"].number_value == 2
    assert {info.name for info in experiment.hparam_infos} == start.keys()
    saved = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert saved["model"]["adapter"]["r"] == 2


def test_the_loggers_of_the_command_line_share_a_folder_and_have_all_of_it(base, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}, adapter: {{class_path: LoRA, init_args: {{r: 2}}}}}}\n"
        "data: {train: rows.jsonl, cache_dir: cache}\n"
        "trainer: {accelerator: cpu, max_epochs: 1}\n"
    )
    command = ["--config", "run.yaml", "--ckpt_path"]
    fitted, validated = drive(tmp_path, [["fit", *command, "none"], ["validate", *command, "best"]])
    assert fitted[0] == validated[0] == 0, fitted[2] + validated[2]
    for version in (0, 1):
        folder = tmp_path / f"runs/run/logs/version_{version}"
        logged = yaml.safe_load((folder / "hparams.yaml").read_text())
        assert logged["model"]["adapter"]["r"] == 2, folder
        _, tab = board(folder)
        columns = [
            metric.name.tag for metric in tab["_hparams_/experiment"].experiment.metric_infos
        ]
        assert columns == ["val/loss", "train/loss"]


# ---- MLflow -------------------------------------------------------------------------------------


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """A function that makes loggers which write to a folder of this test."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return lambda **options: MLFlowLogger(tracking_uri=f"file:{tmp_path}/mlruns", **options)


def artifacts(logger, folder=""):
    """Return the paths of all files that MLflow has of a run."""
    found = set()
    for entry in logger.experiment.list_artifacts(logger.run_id, folder or None):
        found |= artifacts(logger, entry.path) if entry.is_dir else {entry.path}
    return found


def test_mlflow_has_parameters_and_metrics(base, rows, tmp_path, mlflow):
    logger = mlflow()
    data = {"columns": {"prompt": "prompt", "a key?": "x"}}
    trainer = run(base, rows, tmp_path, logger, data={"max_length": 512})
    trainer.datamodule.hparams.update(data)
    found = logger.experiment.get_run(logger.run_id).data
    assert found.params["model/adapter/class"] == "LoRA"
    assert found.params["model/adapter/r"] == "2"
    assert found.params["optimizer/lr"] == "0.01"
    assert found.params["data/max_length"] == "512"
    assert found.params["trainer/max_epochs"] == "2"
    assert found.metrics["val/loss"] == pytest.approx(trainer.callback_metrics["val/loss"].item())
    assert artifacts(logger) == set()  # log_model is not given


def test_keys_that_mlflow_refuses_are_in_a_value(base, rows, tmp_path, mlflow):
    logger = mlflow()
    roles = {"bot (old) = 1": "assistant"}
    run(base, rows, tmp_path, logger, data={"roles": roles}, max_epochs=1)
    params = logger.experiment.get_run(logger.run_id).data.params
    assert params["data/roles"] == '{"bot (old) = 1": "assistant"}'


@pytest.mark.parametrize("log_model", [True, "all"])
def test_mlflow_gets_the_checkpoints(base, rows, tmp_path, mlflow, log_model):
    logger = mlflow(log_model=log_model)
    run(base, rows, tmp_path, logger)
    expected = {
        f"{name}/{name}.ckpt/{file}" for name in ("best", "last") for file in CHECKPOINT_FILES
    }
    expected |= {f"{n}/{f}" for n in ("best", "last") for f in ("aliases.txt", "metadata.yaml")}
    assert artifacts(logger) == expected
    folder = logger.experiment.download_artifacts(logger.run_id, "best", str(tmp_path))
    metadata = yaml.safe_load(Path(folder, "metadata.yaml").read_text())
    assert metadata["original_filename"] == "best.ckpt"
    assert metadata["AdapterCheckpoint"]["monitor"] == "val/loss"
    assert Path(folder, "aliases.txt").read_text() == "['latest', 'best']"
    module = CausalLMModule.load_from_checkpoint(Path(folder, "best.ckpt"))
    assert module.learning_rate == 0.01


def test_a_run_of_mlflow_that_goes_on_keeps_its_parameters_and_names_the_changed(
    base, rows, tmp_path, mlflow
):
    first = mlflow()
    run(base, rows, tmp_path, first, max_epochs=1)
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    again = mlflow(run_id=first.run_id)
    with pytest.warns(
        UserWarning, match=r"MLflow keeps the parameters .* trainer/max_epochs: give"
    ):
        run(base, rows, tmp_path, again, max_epochs=2, ckpt_path=last)
    params = again.experiment.get_run(first.run_id).data.params
    assert params["trainer/max_epochs"] == "1"


# ---- Weights & Biases ---------------------------------------------------------------------------


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A function that makes loggers of runs which are written to a folder of this test."""
    module = pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield lambda **options: LightningsWandbLogger(save_dir=str(tmp_path), **options)
    module.finish()


def wandb_records(folder):
    """Return the records of an offline run, which are in a log of LevelDB's format."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    [file] = folder.glob("wandb/offline-run*/*.wandb")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(DecodeError):  # W&B's process is still writing it
            records = [Record.FromString(part) for part in leveldb_records(file.read_bytes())]
            if any(record.HasField("exit") for record in records):
                return records
        time.sleep(0.05)
    raise AssertionError(f"{file} has no end")


def leveldb_records(content, block=32768):
    """Yield the records of a log in LevelDB's format, after a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_run(base, rows, tmp_path, logger, **options):
    """Return the configuration of a run, and its artifacts."""
    import wandb

    run(base, rows, tmp_path, logger, **options)
    config = dict(logger.experiment.config)
    wandb.finish()
    found = [r.artifact for r in wandb_records(tmp_path) if r.HasField("artifact")]
    return config, found


def test_wandb_has_the_configuration_and_no_checkpoint_without_log_model(
    base, rows, tmp_path, wandb
):
    config, found = wandb_run(base, rows, tmp_path, wandb())
    assert config["model"]["adapter"]["class"] == "LoRA"
    assert config["model"]["adapter"]["r"] == 2
    assert config["optimizer"]["lr"] == 0.01
    assert config["data"]["train"] == str(rows)
    assert found == []


@pytest.mark.parametrize(("log_model", "count"), [(True, 2), ("all", 4)])
def test_wandb_gets_the_checkpoints(base, rows, tmp_path, wandb, log_model, count):
    options = {"module": {"learning_rate": 1e-3}}  # the loss falls in both epochs
    _, found = wandb_run(base, rows, tmp_path, wandb(log_model=log_model), **options)
    assert len(found) == count  # best and last at the end, or after each epoch
    for artifact in found:
        assert artifact.type == "model"
        paths = {entry.path for entry in artifact.manifest.contents}
        assert paths == {f"model.ckpt/{file}" for file in CHECKPOINT_FILES}
    last = found[-1]
    assert sorted(last.aliases) == ["latest"]
    assert sorted(found[-2].aliases) == ["best", "latest"]
    assert '"original_filename":"last.ckpt"' in last.metadata
    folder = tmp_path / "downloaded" / "model.ckpt"
    folder.mkdir(parents=True)
    for entry in last.manifest.contents:
        (folder.parent / entry.path).write_bytes(Path(entry.local_path).read_bytes())
    assert CausalLMModule.load_from_checkpoint(folder).learning_rate == 1e-3


def test_a_checkpoint_callback_of_ones_own_is_uploaded_too(base, rows, tmp_path, wandb):
    own = ModelCheckpoint(tmp_path / "own", "{step}", save_top_k=-1, every_n_train_steps=3)
    _, found = wandb_run(base, rows, tmp_path, wandb(log_model=True), callbacks=[own], max_epochs=1)
    names = [a.metadata for a in found]
    assert sum('"original_filename":"step=3.ckpt"' in name for name in names) == 1
    assert sum('"original_filename":"step=6.ckpt"' in name for name in names) == 1


# ---- Comet --------------------------------------------------------------------------------------


def test_comet_has_parameters_and_metrics(base, rows, tmp_path, monkeypatch):
    comet = pytest.importorskip("comet_ml")
    monkeypatch.setenv("COMET_START_ONLINE", "false")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(tmp_path / "comet"))
    logger = CometLogger(offline_directory=str(tmp_path / "comet"))
    assert isinstance(logger.experiment, comet.OfflineExperiment)
    run(base, rows, tmp_path, logger)
    logger.experiment.end()
    [file] = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(file) as archive:
        messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
    payloads = [message["payload"] for message in messages]
    params = {p["param"]["paramName"]: p["param"]["paramValue"] for p in payloads if p.get("param")}
    assert params["model|adapter|class"] == "LoRA"
    assert params["model|adapter|r"] == 2
    assert params["optimizer|lr"] == 0.01
    metrics = {p["metric"]["metricName"] for p in payloads if p.get("metric")}
    assert {"val/loss", "train/loss"} <= metrics


# ---- every logger -------------------------------------------------------------------------------


def test_what_lightning_does_with_its_loggers_is_what_these_tests_stand_on():
    """Where this fails, Lightning's loggers take folders, and ours need no method of their own."""
    from lightning.pytorch.loggers.utilities import _scan_checkpoints

    class Callback:
        best_model_path = last_model_path = os.path.dirname(__file__)
        best_model_score = current_score = torch.tensor(1.0)

    assert _scan_checkpoints(Callback(), {}) == []
    for kind in (MLFlowLogger, LightningsWandbLogger):
        assert callable(kind._scan_and_log_checkpoints)


def test_two_loggers_and_none_are_served(base, rows, tmp_path):
    loggers = [CSVLogger(tmp_path, "a"), CSVLogger(tmp_path, "b")]
    run(base, rows, tmp_path, loggers, max_epochs=1)
    both = [yaml.safe_load((Path(x.log_dir) / "hparams.yaml").read_text()) for x in loggers]
    assert both[0] == both[1]
    assert both[0]["model"]["adapter"]["r"] == 2
    run(base, rows, tmp_path, False, max_epochs=1)


# ---- they add up, below the run's folder --------------------------------------------------------

LOCAL_FILES = {"metrics.csv", "hparams.yaml", "events.out.tfevents"}


def local_files(root):
    """Return the names of what CSV and TensorBoard have written for a run."""
    return {p.name.split(".out")[0] + ".out.tfevents" if ".out." in p.name else p.name
            for p in Path(root).glob("logs/version_0/*")}  # fmt: skip


def test_csv_and_tensorboard_stay_beside_others_unless_one_of_them_is_named(tmp_path):
    def kinds(**options):
        trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", **options)
        return [type(logger) for logger in trainer.loggers]

    other, local = DummyLogger(), [CSVLogger, TensorBoardLogger]
    assert kinds() == kinds(logger=True) == local
    assert kinds(logger=other) == kinds(logger=[other]) == [DummyLogger, *local]
    assert kinds(logger=CSVLogger(tmp_path)) == [CSVLogger]
    assert kinds(logger=[other, TensorBoardLogger(tmp_path)]) == [DummyLogger, TensorBoardLogger]
    assert kinds(logger=False) == kinds(logger=[]) == kinds(barebones=True) == []


@pytest.mark.parametrize(
    ("package", "kind", "environment", "written"),
    [
        (
            "wandb",
            "WandbLogger",
            {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
            "wandb/offline-run*/*.wandb",
        ),
        ("mlflow", "MLFlowLogger", {}, "mlflow.db"),
        ("comet_ml", "CometLogger", {"COMET_START_ONLINE": "false"}, "comet/*.zip"),
        ("trackio", TRACKIO, {}, "trackio/*.db"),
        ("aim", "aim.pytorch_lightning.AimLogger", {}, ".aim/run_metadata.sqlite"),
    ],
)
def test_a_logger_by_class_path_writes_below_the_runs_folder_and_csv_stays(
    base, rows, tmp_path, monkeypatch, package, kind, environment, written
):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for name, value in {"WANDB_SILENT": "true", **environment}.items():
        monkeypatch.setitem(cli_driver.ENVIRONMENT, name, value)
    before = {"rows.jsonl", "cache", "runs"}
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    line = ["fit", f"--model.base_model={base}", "--data.train=rows.jsonl", "--trainer.max_steps=1"]
    line += ["--data.cache_dir=cache", "--trainer.accelerator=cpu", f"--trainer.logger={kind}"]
    [(status, _, errors)] = drive(tmp_path, [line])
    assert status == 0, errors
    root = tmp_path / "runs" / "default"
    assert list(root.glob(written))
    assert local_files(root) >= LOCAL_FILES
    assert {path.name for path in tmp_path.iterdir()} <= before


def test_a_folder_of_its_own_is_kept(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    own = LightningsWandbLogger(save_dir=str(tmp_path / "own"))
    Trainer(default_root_dir=tmp_path / "run", logger=own, accelerator="cpu")
    assert own.save_dir == str(tmp_path / "own")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "environments"))
    logger = LightningsWandbLogger()
    Trainer(default_root_dir=tmp_path / "run", logger=logger, accelerator="cpu")
    assert logger.save_dir == str(tmp_path / "environments")


def test_a_logger_for_trackio_without_trackio_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    with pytest.raises(UserError, match="pip install trackio"):
        TrackioLogger().log_metrics({"a": 1.0}, 0)


def test_trackio_has_parameters_and_metrics(base, rows, tmp_path, monkeypatch):
    if find_spec("trackio") is None:  # not imported before its folder is known
        pytest.skip("trackio is not installed")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    logger = TrackioLogger(save_dir=str(tmp_path / "trackio"), name="mine")
    run(base, rows, tmp_path, logger)
    [file] = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as connection:
        rows_of = lambda q: connection.execute(q).fetchall()  # noqa: E731
        [(config,)] = rows_of("select config from configs")
        metrics = [json.loads(m) for (m,) in rows_of("select metrics from metrics")]
    assert json.loads(config)["model"]["adapter"]["r"] == 2
    assert {"val/loss", "train/loss"} <= set().union(*metrics)
