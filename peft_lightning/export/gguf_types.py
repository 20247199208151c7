"""The types of tensors in a GGUF file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from peft_lightning.export.merged_weights import Piece

TYPES = {
    torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def kind_of(piece: Piece, q8_0: bool) -> gguf.GGMLQuantizationType:
    """Return the type of a tensor that is not quantised."""
    if len(piece.source.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType.F16 if q8_0 else TYPES[piece.dtype][0]


def fits_q8_0(place: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is stored in 8 bits: its rows divide by 32, and it is read by products."""
    return len(shape) > 1 and shape[-1] % 32 == 0 and not place.startswith("position_embd")


def raw(tensor: Tensor) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """Return the values as numpy holds them, bfloat16 as bytes, and their kind."""
    kind, tensor = TYPES[tensor.dtype][0], tensor.contiguous()
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor).numpy(), kind


def tensor_types(file: Path) -> str:
    """Return how many matrices of a file are of which type, as "24 in Q4_K, 6 in Q6_K"."""
    tensors = gguf.GGUFReader(file).tensors
    counts = Counter(tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1)
    return ", ".join(f"{count} matrices in {name}" for name, count in counts.most_common())
