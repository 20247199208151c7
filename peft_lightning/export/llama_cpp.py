"""llama.cpp, where it is installed: it quantises GGUF files, and computes the logits of one."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from peft_lightning.messages import RunError, UserError
from peft_lightning.process.progress import Progress

KINDS = (  # of its quantiser, those that it makes without an importance matrix
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k"),
    *("q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "iq4_xs"),
)
INSTALL = "pip install peft_lightning[llama]"
OWN_ROUNDING = 0.02  # of a logit in deviations: its GELU is a table of float16, for example
_ERROR = 4  # ggml's level of a message, in ggml.h


def is_installed() -> bool:
    """Whether llama-cpp-python is there."""
    return find_spec("llama_cpp") is not None


def require_installed(kind: str) -> None:
    """Raise UserError if the quantiser that makes files of type ``kind`` is not there."""
    if not is_installed():
        raise UserError(
            f"{kind} is made by llama.cpp's quantiser, which is not installed: {INSTALL}; q8_0 "
            "needs no more than what is there"
        )


def quantize(source: Path, target: Path, kind: str) -> None:
    """Quantise a GGUF file, as llama.cpp's llama-quantize does, without an importance matrix.

    Args:
        source: A model in float32, float16 or bfloat16.
        target: The file to write.
        kind: As llama.cpp names it, in lower case: q4_k_m.

    Raises:
        RunError: If llama.cpp cannot; says what it said.
    """
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"].value
    _listen()
    _said.clear()
    with Progress(f"quantizing to {kind}"):
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(target).encode(), ctypes.byref(options)
        )
    if failed:
        raise RunError(
            f"llama.cpp cannot quantise to {kind}: {' '.join(_said) or 'without a word'}"
        )


def logits_of_file(
    file: str, rows: Sequence[Sequence[int]], lora: str | None = None
) -> list[Tensor]:
    """Return the logits that llama.cpp computes for rows of token ids, (T, V) float32 each.

    Keys and values are kept in float32. ``lora`` is the file of an adapter of the model.

    Raises:
        RunError: If llama.cpp cannot load the file; says what it said.
    """
    import llama_cpp

    longest, whole = max(map(len, rows)), llama_cpp.GGML_TYPE_F32
    options: dict[str, Any] = {"n_ctx": longest, "type_k": whole, "type_v": whole}
    options["lora_path"] = lora
    found = []
    _listen()
    _said.clear()
    with Progress("verifying in llama.cpp", len(rows), "rows") as progress:
        try:
            model = llama_cpp.Llama(file, logits_all=True, verbose=False, **options)
        except ValueError as error:
            raise RunError(f"llama.cpp cannot load {file}: {' '.join(_said) or error}") from None
        for row in rows:
            model.reset()
            model.eval(row)
            found.append(torch.tensor(model.scores[: len(row)]))
            progress.update(len(found))
        model.close()
    return found


def tensor_types(file: Path) -> str:
    """Return how many matrices of a file are of which type, as "24 in Q4_K, 6 in Q6_K"."""
    tensors = gguf.GGUFReader(file).tensors
    counts = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    return ", ".join(f"{count} matrices in {name}" for name, count in counts.most_common())


_said: list[str] = []  # llama.cpp's errors since it was last asked for something


@cache
def _listen() -> Any:
    """Collect llama.cpp's errors, and keep its other messages from the screen, from now on."""
    import llama_cpp

    @llama_cpp.llama_log_callback
    def remember(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            _said.append(text.decode(errors="replace").strip())

    llama_cpp.llama_log_set(remember, None)
    return remember  # which must stay alive
