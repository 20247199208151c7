"""Peak memory and time on a named GPU, by arithmetic: nothing is run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from peft_lightning.experiments.plan.model_shape import (
    Memory,
    ModelShape,
    StepOptions,
    memory_of,
    operations,
)
from peft_lightning.kernels.machine import Machine
from peft_lightning.kernels.precision import choose_precision
from peft_lightning.messages import UserError, did_you_mean

UTILISATION = 0.35  # of the peak of dense products, which fine-tuning with large batches reaches
FULL_SPEED_TOKENS = 2048  # of a batch; smaller ones leave a part of the GPU idle
FRAGMENTATION = 1.08  # allocated blocks that are not used whole
CONTEXT = 0.6 * 2**30  # of CUDA and its libraries
START_SECONDS = 30.0  # imports, loading, kernels


@dataclass(frozen=True)
class GPU:
    """A GPU's data sheet.

    Args:
        name: As it is sold.
        gib: Memory in GiB.
        tflops: Peak of dense products in bfloat16, or float16 where it has no other, accumulated in
            float32, without sparsity.
        tflops_32: Peak in float32, TF32 left out, as ``32-true`` computes.
        capability: CUDA's compute capability.
    """

    name: str
    gib: float
    tflops: float
    tflops_32: float
    capability: tuple[int, int]


GPUS = {  # NVIDIA's data sheets
    "h200": GPU("NVIDIA H200 SXM", 141e9 / 2**30, 989, 67, (9, 0)),
    "h100": GPU("NVIDIA H100 SXM", 80, 989, 67, (9, 0)),
    "h100-pcie": GPU("NVIDIA H100 PCIe", 80, 756, 51, (9, 0)),
    "b200": GPU("NVIDIA B200", 180e9 / 2**30, 2250, 80, (10, 0)),
    "a100-80gb": GPU("NVIDIA A100 80GB", 80, 312, 19.5, (8, 0)),
    "a100-40gb": GPU("NVIDIA A100 40GB", 40, 312, 19.5, (8, 0)),
    "l40s": GPU("NVIDIA L40S", 48, 362, 91.6, (8, 9)),
    "l4": GPU("NVIDIA L4", 24, 121, 30.3, (8, 9)),
    "a10g": GPU("NVIDIA A10G", 24, 70, 31.5, (8, 6)),
    "a6000": GPU("NVIDIA RTX A6000", 48, 154.8, 38.7, (8, 6)),
    "rtx5090": GPU("NVIDIA GeForce RTX 5090", 32, 209.5, 104.8, (12, 0)),
    "rtx4090": GPU("NVIDIA GeForce RTX 4090", 24, 165.2, 82.6, (8, 9)),
    "rtx3090": GPU("NVIDIA GeForce RTX 3090", 24, 71, 35.6, (8, 6)),
    "v100": GPU("NVIDIA V100 32GB", 32, 125, 15.7, (7, 0)),
    "t4": GPU("NVIDIA T4", 16, 65, 8.1, (7, 5)),
}


@dataclass(frozen=True)
class GPUEstimate:
    """What a run needs on a GPU.

    Args:
        gpu: The GPU.
        precision: Lightning's name of the type of the products.
        memory: By what it is for.
        peak: Bytes on the device at the highest, all in all.
        fits: Whether it has as many.
        seconds_per_token: Of training.
        assumptions: In words.
    """

    gpu: GPU
    precision: str
    memory: Memory
    peak: float
    fits: bool
    seconds_per_token: float
    assumptions: str


def find_gpu(name: str) -> GPU:
    """Return the GPU of a name; an error lists those that are known.

    Raises:
        UserError: If it is not known.
    """
    found = GPUS.get(name.lower().replace("_", "-").replace(" ", ""))
    if found is None:
        begun = [known for known in GPUS if known.startswith(name.lower())]
        hint = did_you_mean(name.lower(), begun or GPUS)
        raise UserError(f"--gpu {name}: known are {', '.join(GPUS)}{hint}")
    return found


def precision_on(gpu: GPU, precision: str | int | None, dtype: str) -> str:
    """Return Lightning's precision on a GPU: as given, or the one that suits it."""
    if precision in (None, "auto"):
        return choose_precision(Machine("cuda", gpu.capability), dtype)
    return {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(
        str(precision), str(precision)
    )


def estimate(
    gpu: GPU,
    precision: str,
    shape: ModelShape,
    options: StepOptions,
    mean_batch: float,
    loss_share: float,
    row_tokens: float,
) -> GPUEstimate:
    """Return what a run needs on a GPU.

    Args:
        gpu: The GPU.
        precision: Lightning's, as ``precision_on`` returns it.
        shape: The model.
        options: The largest batch, and how it is computed.
        mean_batch: Tokens of a batch.
        loss_share: Share of the tokens that is in the loss.
        row_tokens: Mean length of a row.
    """
    memory = memory_of(shape, options)
    peak = memory.total * FRAGMENTATION + CONTEXT
    in_32 = precision in ("32-true", "64-true")
    speed = (gpu.tflops_32 if in_32 else gpu.tflops) * 1e12
    used = UTILISATION * min(1.0, math.sqrt(mean_batch / FULL_SPEED_TOKENS))
    work = operations(shape, 1.0, loss_share, row_tokens, options.checkpointing)
    return GPUEstimate(
        gpu,
        precision,
        memory,
        peak,
        peak <= gpu.gib * 2**30,
        work / (speed * used),
        f"assumed: {used:.0%} of the {speed / 1e12:g} TFLOP/s of its products in {precision}, "
        f"{FRAGMENTATION - 1:.0%} more memory than arithmetic says, and {CONTEXT / 2**30:g} GiB "
        "for CUDA; nothing was run on it",
    )
