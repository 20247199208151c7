"""The compiled kernels as a library, built once for each release, compiler and processor.

It lies in the user's cache folder. ``PEFT_LIGHTNING_KERNELS=off`` does without.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_lightning.files import atomic_file, scratch_folder, user_cache
from peft_lightning.messages import check_choice
from peft_lightning.process.progress import Progress

SWITCH = "PEFT_LIGHTNING_KERNELS"
TYPES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}
LONGEST_BUILD = 300  # seconds

_HERE = Path(__file__).parent
_TORCH = Path(torch.__file__).parent
_FLAGS = ["-std=c++20", "-O3", "-march=native", "-mprefer-vector-width=512", "-fPIC", "-fopenmp"]
# no wider than what torch computes with, which ATEN_CPU_CAPABILITY can bound
_NARROWED = {"AVX2": ["-mno-avx512f", "-mprefer-vector-width=256"]}
# as torch itself: neither changes a result, and both let loops be vectorised
_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]


def kernels(*tensors: Tensor) -> ctypes.CDLL | None:
    """Return the kernels if they take ``tensors``: plain ones on the CPU, of one known dtype."""
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.dtype != dtype or tensor.device.type != "cpu":
            return None
        if type(tensor) not in (Tensor, nn.Parameter):  # its memory may be elsewhere
            return None
    return _library()[0] if dtype in TYPES else None


def function(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> Any:
    """Return the kernel ``name`` for ``dtype``."""
    return getattr(library, f"{name}_{TYPES[dtype]}")


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return where the numbers of ``tensor`` lie, to pass to a kernel."""
    return ctypes.c_void_p(tensor.data_ptr())


def builds_here() -> bool:
    """Whether this is a kind of machine that the kernels are written for."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def kernels_state() -> str:
    """Return "compiled kernels", or why there are none: "no compiled kernels: ..."."""
    library, why = _library()
    return "compiled kernels" if library else f"no compiled kernels: {why}"


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """Return the library, or None and why not."""
    switch = os.environ.get(SWITCH, "on")
    check_choice(SWITCH, switch, ("on", "off"))
    if switch == "off":
        return None, f"{SWITCH} is off"
    if not builds_here():
        return None, f"{sys.platform} on {platform.machine()}"
    compiler = shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++")
    if compiler is None:
        return None, "no C++ compiler; g++ would make training faster"
    try:
        path = user_cache("kernels") / f"{_identity(compiler)}.so"
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # not there, or not a library
            with Progress("compiling kernels for this processor (once, some 10 s)"):
                _build(compiler, path)
            library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return None, _reason(error)
    return library, ""


def _flags() -> list[str]:
    return [*_FLAGS, *_NARROWED.get(torch.backends.cpu.get_cpu_capability(), [])]


def _sources() -> list[Path]:
    return sorted(_HERE.glob("*.cpp"))


def _identity(compiler: str) -> str:
    """Return a hash of all that decides what the library has to be."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    facts = [" ".join(_flags()).encode(), torch.__version__.encode(), version]
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    facts += [line.encode() for line in cpu if line.startswith(("model name", "flags"))][:2]
    facts += [file.read_bytes() for file in (*_sources(), *sorted(_HERE.glob("*.h")))]
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:32]


def _build(compiler: str, path: Path) -> None:
    """Compile the library into ``path``; processes that do so at once do not disturb each other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    with scratch_folder(path.with_name("build")) as folder:
        objects = [Path(folder, source.stem).with_suffix(".o") for source in _sources()]
        each = zip(_sources(), objects, strict=True)
        compiling = [
            subprocess.Popen(
                [compiler, *_flags(), abi, f"-I{_TORCH / 'include'}", "-c", source, "-o", target],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for source, target in each
        ]
        try:
            for process in compiling:
                _, said = process.communicate(timeout=LONGEST_BUILD)
                if process.returncode:
                    raise subprocess.CalledProcessError(process.returncode, compiler, stderr=said)
        finally:
            for process in compiling:
                process.kill()
        # torch's own OpenMP library, so that there is one pool of threads
        openmp = [str(file) for file in _TORCH.glob("lib/lib*omp*.so*")][:1] or ["-fopenmp"]
        libraries = [f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10", *openmp]
        with atomic_file(path) as built:  # loading a library that is cut short ends the process
            command = [compiler, "-shared", *map(str, objects), "-o", str(built), *libraries]
            subprocess.run(command, capture_output=True, check=True, timeout=LONGEST_BUILD)


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (error.stderr or b"").decode(errors="replace").splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        return f"the compiler failed: {first:.200}"
    return f"{error}"
