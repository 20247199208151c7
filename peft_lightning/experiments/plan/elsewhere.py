"""The plan of a run on a GPU that is elsewhere, by arithmetic: no weight is read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

from peft_lightning.base_model.weights import NotStreamableError, open_weights
from peft_lightning.experiments.plan.disk import checkpoints_kept, disk_bytes
from peft_lightning.experiments.plan.facts import parameter_facts, rows_of
from peft_lightning.experiments.plan.gpu import GPU, START_SECONDS, estimate, precision_on
from peft_lightning.experiments.plan.measure import quiet
from peft_lightning.experiments.plan.measured_run import (
    Planned,
    hidden_bytes,
    of_rows,
    options_of,
    with_prompts,
)
from peft_lightning.experiments.plan.model_shape import shape_of
from peft_lightning.experiments.plan.plan import Plan, remarks
from peft_lightning.experiments.plan.seconds import gpu_seconds
from peft_lightning.experiments.plan.steps import plan_of_batches, step_facts
from peft_lightning.kernels.machine import Machine
from peft_lightning.kernels.precision import choose, name_of


def plan_on_gpu(*built: Any, processes: int, folder: str, gpu: GPU, precision: Any) -> Planned:
    """Return by arithmetic what the whole run will need on a GPU that is elsewhere.

    The base's weights are not read.

    Args:
        built: The trainer of ``fit`` for one process on the CPU, the module and the rows.
        processes: Of the real run, with a GPU each.
        folder: The run's own.
        gpu: The GPU.
        precision: As the run is given it.
    """
    trainer, module, datamodule = built
    with quiet():
        set_up(trainer, module, datamodule)
    splits = getattr(datamodule, "splits", {})
    train, val = rows_of(splits)
    batches = plan_of_batches(datamodule)
    steps = step_facts(trainer, splits.get("train"), batches, processes)
    precision = precision_on(gpu, precision, module.dtype_name)
    with quiet():
        model = meta_model(module)
    saved = name_of(model.dtype)
    dtype = choose(
        Machine("cuda", gpu.capability),
        *(module.dtype_name, precision, saved),
        trains_weights=module.adapter.trains_base,
    ).dtype
    model.to(getattr(torch, dtype))
    module.adapter.attach(model, initialise=False)
    parameters = parameter_facts(module, model, float(module.learning_rate))
    shape = shape_of(model, module.adapter)
    options = with_prompts(shape, options_of(module, precision, steps, dtype), steps, train)
    found = estimate(gpu, precision, shape, options, *of_rows(steps, train))
    kept = checkpoints_kept(trainer.callbacks, steps.steps, steps.validations)
    hidden = hidden_bytes(module, shape, precision)
    plan = Plan(
        *(folder, str(module.base_model_name), train, val, steps, parameters),
        disk_bytes(splits, parameters, None, kept, hidden, steps.steps),
        found.peak,
        gpu_seconds(found, steps, val, START_SECONDS),
        gpu.name,
        False,
        *remarks(parameters, module.adapter, train),
    )
    plan.notes.append(found.assumptions)
    if not found.fits:
        plan.warnings.append(
            f"{found.peak / 2**30:.1f} GiB do not fit the {gpu.gib:.0f} GiB of a {gpu.name}: "
            f"--fit_memory {gpu.gib * 0.95:.0f}GiB shows what would"
        )
    return Planned(plan, shape, options, batches, module, datamodule, gpu=found)


def set_up(trainer: Any, module: Any, datamodule: Any) -> None:
    """Let a trainer know its data and its loaders, as ``fit`` would, without a model."""
    trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
    trainer.training = True
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=datamodule)
    trainer.state.stage = RunningStage.TRAINING
    datamodule.setup("fit")
    trainer.fit_loop.setup_data()
    if trainer.enable_validation:
        trainer.fit_loop.epoch_loop.val_loop.setup_data()


def meta_model(module: Any) -> Any:
    """Return the base of a ``CausalLMModule`` without values, or loaded where that cannot be."""
    with suppress(NotStreamableError):
        where = {"trust_remote_code": module.trust_remote_code, "revision": module.revision}
        return open_weights(module.base_model_name, **where).model.requires_grad_(False)
    module.configure_model()
    model = module.model
    module.adapter.detach(model)
    return model
