"""The plan of a run that is built: a few of its steps are run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft_lightning.base_model.quantization import quantization_method
from peft_lightning.data.batching import BatchPlan
from peft_lightning.experiments.plan.disk import disk_bytes
from peft_lightning.experiments.plan.facts import RowFacts, rows_of
from peft_lightning.experiments.plan.gpu import GPUEstimate
from peft_lightning.experiments.plan.measure import measure
from peft_lightning.experiments.plan.measured import Measured
from peft_lightning.experiments.plan.model_shape import (
    ModelShape,
    StepOptions,
    shape_of,
    with_virtual_tokens,
)
from peft_lightning.experiments.plan.plan import Plan, remarks
from peft_lightning.experiments.plan.seconds import measured_seconds
from peft_lightning.experiments.plan.steps import StepFacts, plan_of_batches
from peft_lightning.kernels.precision import name_of
from peft_lightning.messages import UserError
from peft_lightning.process.resources import available_memory
from peft_lightning.training.checkpoint import AdapterCheckpoint


@dataclass(frozen=True)
class Planned:
    """A plan, and what it takes to plan a variant of its run.

    Args:
        plan: The plan.
        shape: The sizes of its model.
        options: How its largest batch is computed.
        batches: Which rows form which batch; None for data of a user's own class.
        module: Of the run.
        datamodule: Of the run.
        measured: On this machine.
        gpu: Or on a GPU that is elsewhere.
    """

    plan: Plan
    shape: ModelShape
    options: StepOptions
    batches: BatchPlan | None
    module: Any
    datamodule: Any
    measured: Measured | None = None
    gpu: GPUEstimate | None = None


def plan_here(
    trainer: Any, module: Any, datamodule: Any, processes: int, folder: str, batches: int | None
) -> Planned:
    """Run a few steps on this machine, and return what the whole run will need.

    Args:
        trainer: That of ``fit``, with a temporary ``default_root_dir``.
        module: What is trained.
        datamodule: The rows.
        processes: Of the real run.
        folder: The run's own, for the plan's first line.
        batches: Training batches to time; None for as many as a good mean needs.

    Raises:
        UserError: If this machine has too little memory for the weights alone.
    """
    if trainer.strategy.root_device.type == "cpu":
        require_room(module, available_memory())
    saving = next((c for c in trainer.callbacks if isinstance(c, AdapterCheckpoint)), None)
    ran = measure(trainer, module, datamodule, processes, batches)
    saving = saving or next(
        (c for c in trainer.callbacks if isinstance(c, AdapterCheckpoint)), None
    )
    measured, steps, parameters = ran.measured, ran.steps, ran.parameters
    assert steps is not None
    assert parameters is not None
    splits = getattr(datamodule, "splits", {})
    train, val = rows_of(splits)
    shape = shape_of(module.model, module.adapter)
    every = None if saving is None else saving.every_n_steps
    plan = Plan(
        *(folder, str(module.base_model_name), train, val, steps, parameters),
        disk_bytes(
            *(splits, parameters, measured, measured.checkpoints),
            *(hidden_bytes(module, shape, trainer.precision), steps.steps),
        ),
        measured.peak,
        measured_seconds(measured, steps, val, every),
        measured.device,
        True,
        *remarks(parameters, module.adapter, train),
    )
    options = options_of(module, trainer.precision, steps, name_of(module.model.dtype))
    options = with_prompts(shape, options, steps, train)
    return Planned(plan, shape, options, plan_of_batches(datamodule), module, datamodule, measured)


def require_room(module: Any, left: int | None) -> None:
    """Raise UserError if the weights of a base in a folder need more than is left.

    The least is assumed that they can be: saved in float32 and used in two bytes or quantised; or
    trained, with gradients and AdamW's state.

    Args:
        module: The ``CausalLMModule``, before its model is built.
        left: Bytes that this machine has left; None if that is not known.
    """
    folder = Path(str(module.base_model_name)).expanduser()
    saved = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    least = saved / (8 if module.quantization else 2)
    least = 4 * saved if module.adapter.trains_base else least
    if left is not None and least > left:
        raise UserError(
            f"the weights of {module.base_model_name} need at least {least / 2**30:.1f} GiB, and "
            f"this machine has {left / 2**30:.1f} GiB left: --gpu NAME plans for another one"
        )


def options_of(module: Any, precision: Any, steps: StepFacts, dtype: str | None) -> StepOptions:
    """Return how a run computes its largest batch."""
    text, dtype = str(precision), dtype or "float32"
    half = text.startswith(("bf16", "16")) or dtype in ("bfloat16", "float16")
    return StepOptions(
        tokens=steps.largest_batch or round(steps.batch_tokens or 0),
        dtype=dtype,
        compute_bytes=2 if half and text not in ("32-true", "64-true") else 4,
        quantization=module.quantization,
        checkpointing=module.activation_checkpointing,
        keeps_gradients=steps.accumulate > 1,
    )


def with_prompts(
    shape: ModelShape, options: StepOptions, steps: StepFacts, train: RowFacts | None
) -> StepOptions:
    """Return the options with the virtual tokens of the rows of the largest batch."""
    tokens, row = of_rows(steps, train)[0], of_rows(steps, train)[2]
    return with_virtual_tokens(shape, options, max(1, round(tokens / max(1.0, row))))


def of_rows(steps: StepFacts, train: RowFacts | None) -> tuple[float, float, float]:
    """Return mean tokens of a batch, the share of them in the loss, mean tokens of a row."""
    tokens = steps.batch_tokens or 0.0
    if train is None or not train.tokens:
        return tokens, 1.0, tokens
    return tokens, train.loss_tokens / train.tokens, train.tokens / train.rows


def hidden_bytes(module: Any, shape: ModelShape, precision: Any) -> int:
    """Return the bytes of a token in the cache of hidden states; 0 if there is none."""
    if not module.cache_hidden_states:
        return 0
    return shape.hidden * (4 if str(precision).startswith("32") else 2)


def can_quantize(planned: Planned) -> bool:
    """Whether bitsandbytes could hold the base's weights in fewer bits, here or on the GPU."""
    module = planned.module
    config = getattr(module.model, "config", None)
    is_plain = not module.quantization and not str(module.base_model_name).endswith(".gguf")
    already = config is not None and quantization_method(config)
    there = planned.gpu is not None or find_spec("bitsandbytes") is not None
    return bool(there and is_plain and not already and not module.adapter.trains_base)
