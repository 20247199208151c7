"""The facts of a machine that decide in which type a model is stored and computed."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peft_lightning.process.resources import available_memory

# the values of ONEDNN_MAX_CPU_ISA that forbid oneDNN the instructions for bfloat16 products
_WITHOUT_BFLOAT16 = {
    *("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2"),
    *("avx512_core", "avx512_core_vnni"),
}
_WITHOUT_AMX = {"avx512_core_bf16", "avx512_core_fp16", "avx10_1_512"}


@dataclass(frozen=True)
class Machine:
    """The facts that decide a precision.

    Args:
        device: ``cpu``, ``cuda``, ``mps`` ...
        capability: CUDA's compute capability; with several cards, the lowest.
        flags: Those instructions of the CPU that multiply bfloat16: ``amx_bf16``, ``avx512_bf16``
            or ``arm_bf16``.
        vendor: Of the CPU, as it names itself: ``GenuineIntel``, ``AuthenticAMD``; "" if that is
            not known.
        max_isa: ``ONEDNN_MAX_CPU_ISA``, which forbids oneDNN newer instructions; "" without.
            (``ATEN_CPU_CAPABILITY`` does not concern products.)
        onednn_bfloat16: Whether oneDNN says that it multiplies bfloat16.
        memory: Bytes that can still be taken; None if that is not known.
    """

    device: str = "cpu"
    capability: tuple[int, int] | None = None
    flags: frozenset[str] = frozenset()
    vendor: str = ""
    max_isa: str = ""
    onednn_bfloat16: bool = True
    memory: int | None = None

    @property
    def cpu_bfloat16(self) -> str:
        """The instructions by which the CPU multiplies bfloat16 faster than float32; "" without.

        AVX512-BF16 does so on AMD's processors. On Intel's a product by it takes 1.6 times as long
        as in float32; they have AMX, unless a virtual machine hides it or a limit forbids it.
        """
        limit = self.max_isa.lower()
        if not self.onednn_bfloat16 or limit in _WITHOUT_BFLOAT16:
            return ""
        names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "arm_bf16": "ARM BF16"}
        if limit in _WITHOUT_AMX:
            del names["amx_bf16"]
        if self.vendor == "GenuineIntel":
            del names["avx512_bf16"]
        return next((names[flag] for flag in names if flag in self.flags), "")


def find_machine(device: str | torch.device = "cpu") -> Machine:
    """Return the facts of this machine, for models on ``device``."""
    kind = torch.device(device).type
    if kind == "cuda":
        chosen = torch.device(device).index
        cards = range(torch.cuda.device_count()) if chosen is None else [chosen]
        return Machine(kind, min(torch.cuda.get_device_capability(card) for card in cards))
    if kind != "cpu":
        return Machine(kind)
    try:
        onednn = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # torch without oneDNN
        onednn = False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    return Machine(
        kind,
        flags=_cpu_flags(onednn),
        vendor=_cpu_vendor(),
        max_isa=limit,
        onednn_bfloat16=onednn,
        memory=available_memory(),
    )


def _cpu_flags(onednn: bool) -> frozenset[str]:
    if platform.machine().lower() in ("aarch64", "arm64"):
        return frozenset({"arm_bf16"} if onednn else ())  # oneDNN asks the processor there
    found = {
        "avx512_bf16": getattr(torch.cpu, "_is_avx512_bf16_supported", bool)(),
        "amx_bf16": getattr(torch.cpu, "_is_amx_tile_supported", bool)(),
    }
    return frozenset(flag for flag, present in found.items() if present)


def _cpu_vendor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return ""


def device_of(accelerator: Any) -> str:
    """Return the kind of device that Lightning's ``accelerator`` stands for.

    Args:
        accelerator: A name, or an accelerator.
    """
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__
    name = name.lower().removesuffix("accelerator")
    if name in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    return name
