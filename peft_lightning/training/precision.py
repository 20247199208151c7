"""Precision and threads of a run: what the trainer computes in, and what is said of it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from peft_lightning.kernels.machine import device_of, find_machine
from peft_lightning.kernels.precision import (
    choice_of,
    choose_precision,
    emulation_notice,
    name_of,
)
from peft_lightning.messages import UserError
from peft_lightning.process.resources import (
    check_processes,
    find_cores,
    limit_threads,
    threads_reason,
)

AUTO = "auto"


def resolve_precision(precision: Any, accelerator: Any, dtype: str) -> Any:
    """Return the ``precision`` for Lightning's Trainer, of which auto is what suits the processor.

    Args:
        precision: As given.
        accelerator: The Trainer's.
        dtype: Of the base's frozen weights, as given.

    Raises:
        UserError: For 16-mixed on a CPU, in whose place Lightning would take bf16-mixed.
    """
    device = device_of(accelerator)
    if precision == AUTO and device not in ("cpu", "cuda", "mps"):
        return "32-true"  # one that is not known here, or a mistake that Lightning explains
    if precision == AUTO:
        return choose_precision(find_machine(device), dtype)
    if device == "cpu" and str(precision) in ("16", "16-mixed"):
        machine = find_machine(device)
        raise UserError(
            f"trainer.precision {precision} needs a GPU, as CPUs hardly multiply float16: auto is "
            f"{choose_precision(machine)} on this one"
        )
    return precision


def precision_of_run(trainer: Any) -> dict[str, Any]:
    """Return what ``load_base_model`` has to know of the run; nothing without a trainer.

    Args:
        trainer: Of the module; None if it has none.

    Raises:
        UserError: If the processes of the run compute in different precisions, as ``auto`` would
            on machines of different kinds.
    """
    if trainer is None:
        return {}
    own = str(trainer.precision)
    if trainer.world_size > 1 and (first := trainer.strategy.broadcast(own)) != own:
        raise UserError(
            f"process {trainer.global_rank} computes in {own} and the first one in {first}, as "
            f"their machines differ: name one for all, --trainer.precision 32-true or {first}"
        )
    return {"precision": own, "machine": find_machine(trainer.strategy.root_device)}


def say_if_emulated(model: Any) -> None:
    """Print a line if the processor has no instructions for what the model computes in."""
    choice = choice_of(model)
    if choice is None:
        return
    named = choice.precision in (None, "32-true")  # then the weights' type decides
    instead = "model.dtype auto" if named else "trainer.precision auto"
    if notice := emulation_notice(choice, instead):
        rank_zero_info(notice)


def settle_resources(trainer: Any) -> None:
    """Share the cores of this machine among the trainer's processes on it."""
    limit_threads(trainer.num_devices)


def check_devices(trainer: Any) -> None:
    """Print a line if a run has more processes than the machine has cores for.

    Raises:
        UserError: If it has many more.
    """
    on_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    if on_cpu and (notice := check_processes(trainer.num_devices, find_cores())):
        rank_zero_info(notice)


def types_used(module: Any) -> dict[str, str]:
    """Return the type of the base's weights and the precision of the products."""
    trainer = module._trainer
    precision = {} if trainer is None else {"precision": str(trainer.precision)}
    return {"dtype": str(name_of(module.model.dtype)), **precision}


def say_if_changed(saved: dict[str, str] | None, module: Any) -> None:
    """Print a line if a run goes on in other types than those of its checkpoint.

    Args:
        saved: What ``types_used`` returned when the checkpoint was written.
        module: That is trained from now on; nothing is said of one without a trainer.
    """
    now = types_used(module)
    if saved is None or saved == now or module._trainer is None or module.trainer.state.fn != "fit":
        return
    before, after = (
        f"{types.get('precision')} over {types['dtype']} weights" for types in (saved, now)
    )
    rank_zero_info(
        f"the checkpoint was trained with {before}, this run goes on with {after}, so it rounds "
        "differently from here"
    )


def precision_rows(module: Any) -> dict[str, str]:
    """Return precision and threads, for the table at the start of a run."""
    choice = choice_of(module.model)
    rows = {} if choice is None else {"precision": str(choice)}
    if rows and module.quantization:
        rows["precision"] += f"; linear layers in {module.quantization}"
    if module.device.type == "cpu":
        rows["threads"] = f"{torch.get_num_threads()}: {threads_reason()}"
    return rows
