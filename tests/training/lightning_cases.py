"""What Lightning 2.6 offers, and what is true of it here: the table of docs/lightning.md.

``test_lightning_table.py`` runs each case, and holds that no name of Lightning's is missing.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch import callbacks, loggers, profilers, strategies
from lightning.pytorch.plugins import environments
from lightning.pytorch.plugins import io as ios
from lightning.pytorch.plugins import precision as precisions
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

import lightning_scripts as scripts
from lightning_case import EXACT, REFUSED, WORKS, Case, Check, Elsewhere, Make, Row, Script


def wrote(pattern: str) -> Check:
    """Return whether a run has left such a file."""
    return lambda trainer: any(Path.cwd().rglob(pattern))


def logged(name: str) -> Check:
    """Return whether a column of metrics.csv has this in its name."""
    return lambda trainer: any(
        name in file.read_text().splitlines()[0] for file in Path.cwd().rglob("metrics.csv")
    )


CSV = Make(loggers.CSVLogger, save_dir="logs")
BOARD = Make(loggers.TensorBoardLogger, save_dir="logs")
LOGS = {"logger": CSV, "log_every_n_steps": 1}
STOPS = Make(callbacks.EarlyStopping, monitor="val/loss", stopping_threshold=1e3)


def called(kind: type, **arguments: object) -> dict[str, object]:
    return {"callbacks": [Make(kind, **arguments)]}


TRAINER: dict[str, Row] = {
    "accelerator": Case({"accelerator": "cpu"}),
    "strategy": Case({"strategy": "auto"}, note="see Strategies"),
    "devices": Case({"devices": 1}, note="more: see Strategies"),
    "num_nodes": Case({"num_nodes": 1}),
    "precision": Case({"precision": "32-true"}, note="see Precision"),
    "logger": Case({"logger": False}, note="see Loggers"),
    "callbacks": Case({"callbacks": []}, note="see Callbacks"),
    "fast_dev_run": Case(
        {"fast_dev_run": 2}, WORKS, "leaves no checkpoint", steps=2, save_at=0, equal=False
    ),
    "max_epochs": Case({"max_epochs": 3}, steps=9),
    "min_epochs": Case({"max_epochs": 3, "min_epochs": 2, "callbacks": [STOPS]}),
    "max_steps": Case({"max_epochs": -1, "max_steps": 5}, steps=5),
    "min_steps": Case(
        {"max_epochs": 3, "min_steps": 5, "callbacks": [STOPS]},
        WORKS,
        "that `EarlyStopping` waits for `min_steps` to stop is in no checkpoint of Lightning's, so "
        "a run resumed meanwhile goes on to its next validation",
        steps=5,
    ),
    "max_time": Case({"max_time": "00:01:00:00"}, note="the time before a resume counts"),
    "limit_train_batches": Case({"limit_train_batches": 2}, steps=4, save_at=3),
    "limit_train_batches: a share": Case({"limit_train_batches": 0.7}, steps=4, save_at=3),
    "limit_val_batches": Case({"limit_val_batches": 1}),
    "limit_test_batches": Script(scripts.test_is_limited, text="limit_test_batches=1"),
    "limit_predict_batches": Script(scripts.predict_is_limited, text="limit_predict_batches=1"),
    "overfit_batches": Case(
        {"overfit_batches": 2}, note="the first batches of the file", steps=4, save_at=3
    ),
    "val_check_interval": Case({"val_check_interval": 2}),
    "val_check_interval: a share": Case({"val_check_interval": 0.5}),
    "val_check_interval: a time": Case({"val_check_interval": "00:00:00:01"}),
    "check_val_every_n_epoch": Case({"check_val_every_n_epoch": 2}),
    "check_val_every_n_epoch: none": Case(
        {"check_val_every_n_epoch": None, "val_check_interval": 4}
    ),
    "num_sanity_val_steps": Case({"num_sanity_val_steps": 1}),
    "log_every_n_steps": Case(LOGS, did=logged("train/loss")),
    "enable_checkpointing": Case(
        {"enable_checkpointing": False}, note="`trainer.save_checkpoint` still saves", equal=False
    ),
    "enable_progress_bar": Case({"enable_progress_bar": True}),
    "enable_model_summary": Case({"enable_model_summary": True}),
    "accumulate_grad_batches": Case(
        {"accumulate_grad_batches": 2},
        note="the mean over all tokens of a step, not Lightning's mean of means",
        steps=4,
        save_at=3,
    ),
    "gradient_clip_val": Case({"gradient_clip_val": 0.01}),
    "gradient_clip_algorithm": Case(
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
    ),
    "deterministic": Case({"deterministic": True}),
    "deterministic: warn": Case({"deterministic": "warn"}),
    "benchmark": Case({"benchmark": True}),
    "inference_mode": Case({"inference_mode": False}),
    "use_distributed_sampler": Case(
        {"use_distributed_sampler": True}, note="our loaders know their rank without it"
    ),
    "profiler": Case({"profiler": None}, note="see Profilers"),
    "detect_anomaly": Case({"detect_anomaly": True}),
    "barebones": Case(
        {"barebones": True},
        WORKS,
        "saves, logs and shows nothing, as Lightning means it",
        save_at=0,
        equal=False,
    ),
    "plugins": Case({"plugins": []}, note="see Plugins"),
    "sync_batchnorm": Case({"sync_batchnorm": True}),
    "reload_dataloaders_every_n_epochs": Case({"reload_dataloaders_every_n_epochs": 1}),
    "default_root_dir": Case(
        {"default_root_dir": "here"}, did=wrote("here/checkpoints/last.ckpt"), equal=False
    ),
    "enable_autolog_hparams": Case({"enable_autolog_hparams": False}),
    "model_registry": Case(
        {"model_registry": "me/model"}, REFUSED, error="litmodels", needs="litmodels"
    ),
}

ACCELERATORS: dict[str, Row] = {
    "cpu, CPUAccelerator": Case({"accelerator": "cpu"}),
    "cuda, gpu, CUDAAccelerator": Case(
        {"accelerator": "gpu"},
        REFUSED,
        error="No supported gpu backend|there is none here",
        needs="a GPU",
    ),
    "mps, MPSAccelerator": Case(
        {"accelerator": "mps"}, REFUSED, error="MPSAccelerator. can not run", needs="a Mac"
    ),
    "tpu, XLAAccelerator": Case(
        {"accelerator": "tpu"}, REFUSED, "never tried", error="torch_xla", needs="torch_xla"
    ),
}

MIXED16 = "a CPU hardly multiplies float16; Lightning's own Trainer takes bf16-mixed and says so"
PRECISION: dict[str, Row] = {
    "64-true, 64": Case({"precision": "64-true"}),
    "32-true, 32": Case({"precision": "32-true"}),
    "16-true": Case({"precision": "16-true"}),
    "16-mixed, 16": Case(
        {"precision": "16-mixed"}, REFUSED, MIXED16, error="needs a GPU", needs="a GPU"
    ),
    "bf16-true": Case({"precision": "bf16-true"}, note="small updates are rounded away"),
    "bf16-mixed, bf16": Case({"precision": "bf16-mixed"}),
    **{
        name: Case(
            {"precision": name}, REFUSED, error="transformer_engine", needs="transformer_engine"
        )
        for name in ("transformer-engine", "transformer-engine-float16")
    },
}


class UnfreezeNorm(callbacks.BaseFinetuning):
    """Trains the base's last norm from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.model.model.norm)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.model.model.norm, optimizer, lr=0.1)


def trained_norm(trainer: L.Trainer) -> bool:
    norm = trainer.lightning_module.state_dict()["model.model.norm.weight"]
    return norm.ne(trainer.lightning_module.built_norm).any().item()


def accumulated(trainer: L.Trainer) -> bool:
    return trainer.accumulate_grad_batches == 2


CALLBACKS: dict[str, Row] = {
    "Callback": Case(
        called(scripts.EveryHook), note="all hooks", yaml=False, did=scripts.hooks_were_called
    ),
    "BackboneFinetuning": Case(
        called(callbacks.BackboneFinetuning, unfreeze_backbone_at_epoch=1),
        REFUSED,
        "`CausalLMModule` has no `backbone`; a subclass with one works",
        error="needs a module with a backbone; CausalLMModule has none",
    ),
    "BackboneFinetuning: with a backbone": Case(
        called(callbacks.BackboneFinetuning, unfreeze_backbone_at_epoch=1),
        note="what it trains is saved beside the adapter",
        module=scripts.WithBackbone,
        yaml=False,
        did=trained_norm,
    ),
    "BaseFinetuning": Case(
        called(UnfreezeNorm),
        note="what it unfreezes is saved beside the adapter",
        module=scripts.WithBackbone,
        yaml=False,
        did=trained_norm,
    ),
    "BasePredictionWriter": Script(scripts.a_writer_writes, text="BasePredictionWriter('batch')"),
    "BatchSizeFinder": Elsewhere(
        "training/test_tuner.py",
        "test_a_run_after_a_batch_size_finder_is_that_of_the_found_size",
        text="BatchSizeFinder()",
    ),
    "Checkpoint": Case(called(scripts.OwnCheckpoint), yaml=False, did=wrote("own.ckpt")),
    "DeviceStatsMonitor": Case(
        {**called(callbacks.DeviceStatsMonitor, cpu_stats=True), **LOGS},
        did=logged("DeviceStatsMonitor"),
    ),
    "EarlyStopping": Case(
        called(callbacks.EarlyStopping, monitor="val/loss", patience=1, min_delta=100.0),
        note="a run that it has ended goes on with more `max_epochs`",
    ),
    "EMAWeightAveraging": Case(
        called(callbacks.EMAWeightAveraging, decay=0.5),
        note="checkpoints hold the average; the weights are in the trainer's state",
    ),
    "GradientAccumulationScheduler": Case(
        called(callbacks.GradientAccumulationScheduler, scheduling={0: 1, 1: 2}),
        steps=5,
        did=accumulated,
    ),
    "LambdaCallback": Case(
        called(callbacks.LambdaCallback, on_train_end=lambda t, m: Path("seen").touch()),
        yaml=False,
        did=wrote("seen"),
    ),
    "LearningRateFinder": Elsewhere(
        "training/test_tuner.py",
        "test_a_run_after_a_learning_rate_finder_is_that_of_the_found_rate",
        text="LearningRateFinder()",
    ),
    "LearningRateMonitor": Case(
        {**called(callbacks.LearningRateMonitor), **LOGS}, did=logged("lr-")
    ),
    "ModelCheckpoint": Case(
        called(callbacks.ModelCheckpoint, every_n_train_steps=1, save_top_k=-1, dirpath="own"),
        note="beside ours",
        did=wrote("own/*.ckpt"),
    ),
    "ModelCheckpoint: monitor": Case(
        called(callbacks.ModelCheckpoint, monitor="val/loss", dirpath="own"),
        note="beside ours",
        did=wrote("own/*.ckpt"),
    ),
    "ModelPruning": Case(
        called(callbacks.ModelPruning, pruning_fn="l1_unstructured", amount=0.5),
        REFUSED,
        "the base is frozen and in no checkpoint: merge the adapter, and prune the merged model",
        error="ModelPruning prunes the base",
    ),
    "ModelSummary": Case(
        {**called(callbacks.ModelSummary, max_depth=2), "enable_model_summary": True}
    ),
    "OnExceptionCheckpoint": Script(
        scripts.a_run_goes_on_from_its_exception,
        EXACT,
        "if raised between two steps; else go on from `last.ckpt`, which is exact",
        "OnExceptionCheckpoint('.')",
    ),
    "ProgressBar": Case(
        {**called(scripts.OwnBar), "enable_progress_bar": True}, yaml=False, did=wrote("bar")
    ),
    "RichModelSummary": Case({**called(callbacks.RichModelSummary), "enable_model_summary": True}),
    "RichProgressBar": Case(
        {**called(callbacks.RichProgressBar, refresh_rate=2), "enable_progress_bar": True}
    ),
    "SpikeDetection": Case(
        called(callbacks.SpikeDetection),
        note="the losses before a resume count; Lightning 2.6 alone cannot resume with it",
    ),
    "StochasticWeightAveraging": Case(
        called(callbacks.StochasticWeightAveraging, swa_lrs=1e-2, swa_epoch_start=1),
        note="the last checkpoint holds the average",
    ),
    "ThroughputMonitor": Case(
        {**called(callbacks.ThroughputMonitor, batch_size_fn=len, window_size=3), **LOGS},
        note="`tokens_per_second` is logged without it",
        yaml=False,
        did=logged("batches_per_sec"),
    ),
    "Timer": Case(called(callbacks.Timer, duration="00:01:00:00")),
    "TQDMProgressBar": Case(
        {**called(callbacks.TQDMProgressBar, refresh_rate=7), "enable_progress_bar": True}
    ),
    "WeightAveraging": Case(called(callbacks.WeightAveraging)),
}

OF_LOGGERS = "training/test_loggers.py"
LOGGERS: dict[str, Row] = {
    "Logger": Case({"logger": Make(scripts.OwnLogger)}, yaml=False, did=wrote("own.log")),
    "CSVLogger": Case(LOGS, did=logged("train/loss")),
    "TensorBoardLogger": Case({"logger": BOARD}, did=wrote("events.out*")),
    "CSVLogger, TensorBoardLogger": Case({"logger": [CSV, BOARD]}, did=wrote("events.out*")),
    "MLFlowLogger": Elsewhere(OF_LOGGERS, "test_mlflow_has_parameters_and_metrics"),
    "WandbLogger": Elsewhere(OF_LOGGERS, "test_wandb_gets_the_checkpoints"),
    "CometLogger": Elsewhere(OF_LOGGERS, "test_comet_has_parameters_and_metrics"),
    "LitLogger": Case(
        {"logger": Make(loggers.LitLogger)}, REFUSED, error="litlogger", needs="litlogger"
    ),
}

HERE = {"dirpath": ".", "filename": "times"}
PROFILERS: dict[str, Row] = {
    "Profiler": Case({"profiler": Make(scripts.OwnProfiler)}, yaml=False, did=wrote("actions")),
    "PassThroughProfiler": Case({"profiler": Make(profilers.PassThroughProfiler)}),
    "simple, SimpleProfiler": Case(
        {"profiler": Make(profilers.SimpleProfiler, **HERE)}, did=wrote("fit-times.txt")
    ),
    "advanced, AdvancedProfiler": Case(
        {"profiler": Make(profilers.AdvancedProfiler, **HERE)}, did=wrote("fit-times.txt")
    ),
    "pytorch, PyTorchProfiler": Case(
        {"profiler": Make(profilers.PyTorchProfiler, **HERE), "max_epochs": 1},
        steps=3,
        save_at=2,
        did=wrote("fit-times*.txt"),
    ),
    "xla, XLAProfiler": Case(
        {"profiler": "xla"}, REFUSED, "never tried", error="torch_xla", needs="torch_xla"
    ),
}

SPAWNED = ["ddp_spawn", "ddp_fork", "ddp_notebook"]
STRATEGIES: dict[str, Row] = {
    "auto": Case({"strategy": "auto"}),
    "single_device": Case({"strategy": "single_device"}),
    "SingleDeviceStrategy": Case({"strategy": Make(strategies.SingleDeviceStrategy, device="cpu")}),
    "ddp": Case({"strategy": "ddp"}),
    "ddp: two processes": Elsewhere(
        "training/cluster/test_strategies.py",
        "test_a_run_goes_on_with_other_processes_as_if_it_had_not_stopped",
        EXACT,
        text="strategy='ddp', devices=2",
    ),
    "DDPStrategy": Case({"strategy": Make(strategies.DDPStrategy)}),
    "ddp_find_unused_parameters_false": Case({"strategy": "ddp_find_unused_parameters_false"}),
    "ddp_find_unused_parameters_true": Case({"strategy": "ddp_find_unused_parameters_true"}),
    "fsdp2": Case({"strategy": "fsdp2"}, note="ours; the layers in parts"),
    "fsdp2: two processes": Elsewhere(
        "training/cluster/test_strategies.py",
        "test_two_processes_train_the_weights_of_one",
        text="strategy='fsdp2', devices=2",
    ),
    **{
        name: Case({"strategy": name}, REFUSED, "use `ddp`", error="use ddp")
        for name in SPAWNED
        + [f"{n}_find_unused_parameters_{x}" for n in SPAWNED for x in ("false", "true")]
    },
    **{
        name: Case({"strategy": name}, REFUSED, "use `fsdp2`", error="use fsdp2")
        for name in (
            "fsdp",
            "fsdp_cpu_offload",
            "deepspeed",
            "deepspeed_stage_1",
            "deepspeed_stage_2",
            "deepspeed_stage_2_offload",
            "deepspeed_stage_3",
            "deepspeed_stage_3_offload",
            "deepspeed_stage_3_offload_nvme",
        )
    },
    **{
        kind.__name__: Case({"strategy": Make(kind)}, REFUSED, "use `fsdp2`", error="use fsdp2")
        for kind in (
            strategies.FSDPStrategy,
            strategies.ModelParallelStrategy,
        )
    },
    "DeepSpeedStrategy": Case(
        {"strategy": Make(strategies.DeepSpeedStrategy)},
        REFUSED,
        "use `fsdp2`",
        error="use fsdp2|DeepSpeed installed",  # Lightning asks for it when it is made
    ),
    "single_tpu": Case({"strategy": "single_tpu"}, REFUSED, error="give trainer.accelerator tpu"),
    "single_xla": Case({"strategy": "single_xla"}, REFUSED, error="give trainer.accelerator tpu"),
    "xla": Case({"strategy": "xla"}, REFUSED, "never tried", error="torch_xla", needs="torch_xla"),
    "xla_debug": Case(
        {"strategy": "xla_debug"}, REFUSED, "never tried", error="torch_xla", needs="torch_xla"
    ),
    "Strategy, ParallelStrategy": Case(
        {"strategy": Make(scripts.OwnStrategy)}, note="a subclass", yaml=False
    ),
}


def plugin(kind: type, **arguments: object) -> dict[str, object]:
    return {"plugins": [Make(kind, **arguments)]}


XLA = {"verdict": REFUSED, "note": "never tried", "error": "torch_xla", "needs": "torch_xla"}
LAUNCHED = "used by `ddp` with several processes"
PLUGINS: dict[str, Row] = {
    "Precision": Case(plugin(precisions.Precision)),
    "DoublePrecision": Case(plugin(precisions.DoublePrecision)),
    "HalfPrecision": Case(plugin(precisions.HalfPrecision, precision="bf16-true")),
    "MixedPrecision": Case(plugin(precisions.MixedPrecision, precision="bf16-mixed", device="cpu")),
    "BitsandbytesPrecision": Case(
        plugin(precisions.BitsandbytesPrecision, mode="nf4"),
        REFUSED,
        "use `quantization: 4bit`, on a CPU too",
        error="quantization|Requirement .bitsandbytes. not met",
    ),
    "DeepSpeedPrecision": Case(
        plugin(precisions.DeepSpeedPrecision, precision="32-true"),
        REFUSED,
        "belongs to a strategy that is refused",
        error="give trainer.precision 32-true",
    ),
    "FSDPPrecision": Case(
        plugin(precisions.FSDPPrecision, precision="32-true"),
        REFUSED,
        "belongs to a strategy that is refused",
        error="give trainer.precision 32-true",
    ),
    "TransformerEnginePrecision": Case(
        plugin(precisions.TransformerEnginePrecision, weights_dtype=None),
        REFUSED,
        error="transformer_engine",
        needs="transformer_engine",
        yaml=False,
    ),
    "XLAPrecision": Case(plugin(precisions.XLAPrecision), **XLA),
    "CheckpointIO": Elsewhere(
        "training/test_trainer.py",
        "test_a_checkpoint_plugin_of_the_users_writes_the_checkpoints_which_is_said",
        EXACT,
        text="plugins=[MyCheckpointIO()]",
    ),
    "AsyncCheckpointIO": Case(plugin(ios.AsyncCheckpointIO)),
    "TorchCheckpointIO": Case(
        plugin(ios.TorchCheckpointIO),
        note="files of torch's in place of adapter folders, which is said",
        equal=False,
        did=lambda trainer: Path("at.ckpt").is_file(),
    ),
    "XLACheckpointIO": Case(plugin(ios.XLACheckpointIO), **XLA),
    "LayerSync, TorchSyncBatchNorm": Case(plugin(TorchSyncBatchNorm)),
    "ClusterEnvironment, LightningEnvironment": Case(
        plugin(environments.LightningEnvironment), note=LAUNCHED
    ),
    "SLURMEnvironment": Case(plugin(environments.SLURMEnvironment), note=LAUNCHED),
    "TorchElasticEnvironment": Case(plugin(environments.TorchElasticEnvironment), note=LAUNCHED),
    "KubeflowEnvironment": Case(plugin(environments.KubeflowEnvironment), note=LAUNCHED),
    "LSFEnvironment": Case(
        plugin(environments.LSFEnvironment),
        REFUSED,
        error="LSB_DJOB_RANKFILE",
        needs="a job of LSF",
    ),
    "MPIEnvironment": Case(
        plugin(environments.MPIEnvironment), REFUSED, error="mpi4py", needs="mpi4py"
    ),
    "XLAEnvironment": Case(plugin(environments.XLAEnvironment), **XLA),
}

METHODS: dict[str, Row] = {
    "fit": Script(scripts.fit_goes_on, note="again, with more epochs", text="trainer.fit twice"),
    "fit: after the others": Script(
        scripts.fit_after_others,
        note="with the weights of `fit` alone",
        text="validate, test, predict, fit",
    ),
    "validate, test": Script(
        scripts.a_checkpoint_is_validated, text="trainer.validate(ckpt_path=...)"
    ),
    "predict": Script(scripts.a_writer_writes, text="trainer.predict(...)"),
    "save_checkpoint": Script(scripts.weights_alone_are_saved, text="weights_only=True"),
    "init_module": Script(
        scripts.a_module_is_made_in_place, text="with trainer.init_module(): ..."
    ),
    "print": Script(scripts.trainer_prints, text="trainer.print('done')"),
}

TUNER: dict[str, Row] = {
    "lr_find": Elsewhere(
        "training/test_tuner.py", "test_the_tuner_sets_the_rate_of_the_fit_that_follows"
    ),
    "scale_batch_size": Elsewhere(
        "training/test_tuner.py", "test_the_tuner_sets_the_batch_size_of_the_fit_that_follows"
    ),
}

OVERRIDES = "training/test_overrides.py"
HOOKS: dict[str, Row] = {
    ", ".join(scripts.QUIET_HOOKS): Case(
        {}, note="overridden without `super()`", yaml=False, module=scripts.AllHooks
    ),
    ", ".join(scripts.STEP_HOOKS): Case(
        {}, note="overridden as Lightning shows it", yaml=False, module=scripts.StepHooks
    ),
    "train_dataloader, val_dataloader, test_dataloader, predict_dataloader": Script(
        scripts.a_module_has_loaders, note="of the module"
    ),
    "training_step, manual_backward": Elsewhere(
        OVERRIDES, "test_a_training_step_that_returns_a_mean_of_its_own_trains"
    ),
    "configure_optimizers": Elsewhere(
        OVERRIDES,
        "test_configure_optimizers_may_be_overridden_in_any_form_and_resumes_bit_for_bit",
        EXACT,
    ),
    "validation_step, test_step": Elsewhere(
        OVERRIDES,
        "test_a_validation_without_the_monitored_value_says_that_there_is_no_best_checkpoint",
    ),
    "predict_step": Script(scripts.own_predict_step),
    "configure_model": Elsewhere(
        OVERRIDES,
        "test_what_a_subclass_adds_is_saved_and_restored_bit_for_bit",
        EXACT,
        "with `super()`, which builds the model",
    ),
    "configure_sharded_model": Case(
        {},
        REFUSED,
        "Lightning wants one of the two",
        error="configure_model",
        yaml=False,
        module=scripts.OldName,
    ),
    "load_from_checkpoint": Elsewhere(
        "training/test_load_from_checkpoint.py", scripts.OF_LOADING, EXACT
    ),
    "log, log_dict, print, all_gather, optimizers, lr_schedulers, clip_gradients, "
    "toggle_optimizer, untoggle_optimizer, toggled_optimizer": Case(
        LOGS, note="called in a step", yaml=False, module=scripts.Calls, did=logged("own/value")
    ),
    "forward": Script(scripts.forward_is_not_defined, REFUSED, "`module.nll(batch)` is the loss"),
    "freeze, unfreeze": Script(
        scripts.frozen_and_unfrozen, note="`unfreeze` leaves the base frozen"
    ),
    "to_onnx, to_torchscript, to_tensorrt": Script(
        scripts.export_is_named, REFUSED, "`merge` or `export` write models for other programs"
    ),
}

CLI: dict[str, Row] = {
    "LightningCLI, LightningArgumentParser, SaveConfigCallback": Script(
        scripts.a_cli_of_ones_own,
        note="a subclass with `add_argument` and `link_arguments`",
        text="LightningCLI(CausalLMModule, SFTDataModule)",
    ),
}

FABRIC: dict[str, Row] = {
    "Fabric": Elsewhere(
        "test_elsewhere.py",
        "test_fabric_and_a_plain_loop_compute_the_same_first_loss",
        note="an adapter on a bare model: [fabric.py](../examples/elsewhere/fabric.py)",
        text="Fabric(accelerator='cpu')",
    ),
}

SECTIONS: dict[str, dict[str, Row]] = {
    "Trainer": TRAINER,
    "Methods of the Trainer": METHODS,
    "Callbacks": CALLBACKS,
    "Loggers": LOGGERS,
    "Profilers": PROFILERS,
    "Precision": PRECISION,
    "Plugins": PLUGINS,
    "Strategies": STRATEGIES,
    "Accelerators": ACCELERATORS,
    "Tuner": TUNER,
    "LightningModule": HOOKS,
    "LightningCLI": CLI,
    "Fabric": FABRIC,
}
