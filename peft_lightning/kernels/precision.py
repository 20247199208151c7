"""In which floating-point type a model is stored and computed: a rule over facts of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from peft_lightning.kernels.machine import Machine

MOST_OF_MEMORY = 0.6  # that weights may take; the rest is for activations, the adapter, the system

HALF = ("bfloat16", "float16")

_PRODUCTS = {  # Lightning's precision -> the type of the products
    **{"bf16-mixed": "bfloat16", "bf16-true": "bfloat16"},
    **{"16-mixed": "float16", "16-true": "float16"},
    **{"32-true": "float32", "64-true": "float64"},
    **{"transformer-engine": "bfloat16", "transformer-engine-float16": "float16"},
}


@dataclass(frozen=True)
class Row:
    """What is chosen for a kind of machine.

    Args:
        precision: Lightning's name of the type of the products.
        weights: The type of the frozen weights in a run. Rounding them costs nothing then, as
            the products round them anyway.
        native: The types that a model may be stored in and computed in as it is.
        why: The reason.
    """

    precision: str
    weights: str
    native: tuple[str, ...]
    why: str


RULE = {
    "new GPU": Row(  # compute capability 8.0 or higher: Ampere and later
        *("bf16-mixed", "bfloat16", ("float32", "bfloat16", "float16")),
        "this GPU multiplies bfloat16, which has the range of float32",
    ),
    "CUDA 7.x": Row(  # Volta, Turing: with a loss scaler, as small gradients would become 0
        *("16-mixed", "float16", ("float32", "float16")),
        "this GPU multiplies float16 but not bfloat16",
    ),
    "bfloat16 CPU": Row(  # float16 has hardly any products on a CPU: 9 to 22 GFLOP/s forward and
        # 1 to 3 backward, where bfloat16 has 149 to 217 (one core with AVX512-BF16)
        *("bf16-mixed", "bfloat16", ("float32", "bfloat16")),
        "this CPU multiplies bfloat16",
    ),
    "other": Row(  # a core with AVX2 emulates bfloat16 at 1 to 13 GFLOP/s, float32 has 80; one of
        # Intel's with AVX512-BF16 but without AMX multiplies it at 80, float32 at 120 to 155
        *("32-true", "float32", ("float32",)),
        "this {device} has no fast bfloat16 products",
    ),
}


def row_of(machine: Machine) -> Row:
    """Return the row of ``RULE`` that is for ``machine``."""
    if machine.device == "cuda" and machine.capability is not None:
        major = machine.capability[0]
        return RULE["new GPU" if major >= 8 else "CUDA 7.x" if major == 7 else "other"]
    return RULE["bfloat16 CPU" if machine.device == "cpu" and machine.cpu_bfloat16 else "other"]


def _why(machine: Machine) -> str:
    row = row_of(machine)
    named = f" ({machine.cpu_bfloat16})" if row is RULE["bfloat16 CPU"] else ""
    return row.why.format(device=machine.device.upper()) + named


@dataclass(frozen=True)
class Choice:
    """How a model is stored and computed.

    Args:
        dtype: Of the frozen weights.
        precision: Of the products, as Lightning names it; None where no trainer computes.
        reason: Why, as part of a sentence.
        emulated: The type of the products, where the processor has no instructions for it.
    """

    dtype: str
    precision: str | None
    reason: str
    emulated: str | None = None

    def __str__(self) -> str:
        how = f"{self.precision}, " if self.precision else ""
        return f"{how}{self.dtype} weights: {self.reason}"


def choose_precision(machine: Machine, dtype: str = "auto") -> str:
    """Return Lightning's ``precision`` for a run.

    Args:
        machine: Where it is computed.
        dtype: Of the frozen weights, as the user wants it. float32 weights are wanted for their
            precision, so the products are float32 too.
    """
    if dtype == "float32":
        return "32-true"
    if dtype == "float16" and "float16" in row_of(machine).native:
        return "16-mixed"
    return row_of(machine).precision


def choose(
    machine: Machine,
    dtype: str = "auto",
    precision: str | None = None,
    saved: str | None = None,
    *,
    trains_weights: bool = False,
    parameters: Callable[[], int | None] = lambda: None,
) -> Choice:
    """Return how a base model is stored and computed.

    In a run the frozen weights have the type of the products. Without one, nothing is rounded:
    they stay as saved where that type is native, and are float32 elsewhere; only on CUDA 7.x
    bfloat16 becomes float16, whose mantissa holds it. In float32 a float16 base keeps its
    values; in the products of a run on a CPU it is rounded to bfloat16, as a float32 one is.

    Args:
        machine: Where it is computed.
        dtype: The user's wish for the weights: auto, float32, bfloat16 or float16.
        precision: The Trainer's; None where there is no trainer.
        saved: The type that the model is saved in; None if that is not known.
        trains_weights: Whether the model's own weights are trained: they need float32, in which
            a small step does not round away.
        parameters: Returns their number, None if that is not known; called only where it decides.
    """
    products = _PRODUCTS.get(precision) if precision is not None else None
    if dtype != "auto":
        weights, why = dtype, f"dtype {dtype}"
    elif trains_weights:
        weights, why = "float32", "they are trained"
    elif products is None:
        weights, why = _outside_a_run(machine, saved)
    else:
        weights, why = _in_a_run(machine, products, str(precision), saved)
    if dtype == "auto" and not trains_weights and _is_too_large(machine, weights, parameters):
        weights = saved if saved in HALF else "bfloat16"
        why = f"memory is short for float32; {why}"
    multiplied = _multiplied(machine, weights, products)
    slow = (
        machine.device == "cpu" and multiplied in HALF and multiplied not in row_of(machine).native
    )
    return Choice(weights, precision, why, multiplied if slow else None)


def _outside_a_run(machine: Machine, saved: str | None) -> tuple[str, str]:
    """Return the type of the weights, and why."""
    if saved is None:
        return "float32", "as read"
    if saved in (*row_of(machine).native, "float64"):
        return saved, "as saved"
    if row_of(machine).weights == "float16":
        return "float16", _why(machine)
    return (
        "float32",
        f"saved in {saved}, which is slow on this {machine.device.upper()}",
    )


def _in_a_run(
    machine: Machine, products: str, precision: str, saved: str | None
) -> tuple[str, str]:
    """Return the type of the weights, that of the products, and why."""
    best = row_of(machine).precision
    why = _why(machine)
    if products == "float64":  # the trainer widens the whole module, once the adapter is drawn
        return ("float32" if saved is None or saved in HALF else saved), "the trainer's precision"
    if precision != best:
        why = "the trainer's precision"
        if products == "float32":
            why += f"; {best} is faster, as {_why(machine)}"
    if products in HALF and saved in ("float32", "float16") and saved != products:
        why += f"; saved in {saved}, rounded"
    return products, why


def _is_too_large(machine: Machine, weights: str, parameters: Callable[[], int | None]) -> bool:
    """Whether float32 weights would leave too little memory, and two bytes each can be had."""
    if machine.device != "cpu" or weights != "float32":
        return False
    if machine.memory is None or (count := parameters()) is None:
        return False
    return 4 * count > MOST_OF_MEMORY * machine.memory


def _multiplied(machine: Machine, weights: str, products: str | None) -> str:
    """Return the type in which linear layers multiply.

    Lightning's 32-true leaves the weights as they are, and on a CPU ``two_bytes`` converts them
    layer by layer; all others convert either them or, by autocast, what is multiplied.
    """
    if products not in (None, "float32"):
        return str(products)
    if products == "float32" and machine.device == "cpu":
        return "float32"
    return "float32" if widens(machine, weights) else weights


def widens(machine: Machine, weights: str) -> bool:
    """Whether weights of two bytes are multiplied in float32 where no trainer says otherwise."""
    is_cpu = machine.device == "cpu"
    return is_cpu and weights in HALF and weights not in row_of(machine).native


_CHOICE = "_precision_choice"  # attribute of a model


def remember_choice(model: Any, choice: Choice) -> None:
    """Let ``choice_of`` a model be ``choice``."""
    setattr(model, _CHOICE, choice)


def choice_of(model: Any) -> Choice | None:
    """Return how a model is stored and computed, if ``load_base_model`` chose that."""
    return getattr(model, _CHOICE, None)


def name_of(dtype: Any) -> str | None:
    """Return the name of a dtype, which may be a name already; None for None."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def times_slower(dtype: str) -> float:
    """Return how many times longer a product takes in ``dtype`` than in float32, measured now.

    One product of 32 rows with a layer of 576 x 1536, some 60 million operations: 0.06 s at the
    1 GFLOP/s of the slowest emulation.
    """
    seconds = {}
    for name in ("float32", dtype):
        kind = getattr(torch, name)
        x, weight = torch.ones(32, 576, dtype=kind), torch.ones(1536, 576, dtype=kind)
        best = float("inf")
        for _ in range(3):  # the first prepares the kernel, and the machine may be busy
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.perf_counter() - start)
            if best > 0.04:
                break
        seconds[name] = best
    return seconds[dtype] / seconds["float32"]


def emulation_notice(choice: Choice, instead: str) -> str:
    """Return a line on products that the processor emulates; "" if it does not.

    Args:
        choice: What is computed.
        instead: What the user should write.
    """
    if choice.emulated is None:
        return ""
    return (
        f"{choice.emulated} is slow on this CPU: a product takes "
        f"{times_slower(choice.emulated):.1f} times as long as in float32 (measured now); "
        f"{instead} is faster"
    )
