"""Flat batches of whole blocks of tokens: few lengths, so that products are compiled once.

For each shape of a half-precision product that it meets on a CPU, oneDNN compiles code and keeps
it: 0.1 to 0.2 s and 25 MiB for each length of the batches of a small model. Flat batches have
nearly as many lengths as there are batches.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F

from peft_lightning.kernels.native.stored import output_dtype

BLOCK = 64  # tokens; less pads less, more has fewer lengths

# products that oneDNN keeps, 0.7 MiB each; read at its first product, 1,024 if not set
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def compiles_products(embedding: Any) -> bool:
    """Whether products of what ``embedding`` gives are compiled for each length of the inputs."""
    kind = embedding.weight.device.type
    autocasts = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocasts else output_dtype(embedding)
    return kind == "cpu" and dtype in (torch.bfloat16, torch.float16)


def in_whole_blocks(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a flat batch without labels that a sequence of padding brings to whole blocks.

    Nothing sees that sequence, as no sequence sees another.

    Args:
        inputs: ``position_ids`` (1, T), ``cu_seq_lens`` (S + 1,), ``seq_lens``, and either
            ``input_ids`` (1, T) or ``inputs_embeds`` (1, T, d).
    """
    tokens = inputs["position_ids"]
    missing = -tokens.shape[1] % BLOCK
    if not missing:
        return inputs
    padded = dict(inputs)
    if "input_ids" in inputs:
        padded["input_ids"] = F.pad(inputs["input_ids"], (0, missing))
    if "inputs_embeds" in inputs:
        padded["inputs_embeds"] = F.pad(inputs["inputs_embeds"], (0, 0, 0, missing))
    places = torch.arange(missing, device=tokens.device)
    padded["position_ids"] = torch.cat([tokens, places[None]], dim=1)
    padded["cu_seq_lens"] = F.pad(inputs["cu_seq_lens"], (0, 1), value=tokens.shape[1] + missing)
    padded["seq_lens"] = [*inputs["seq_lens"], missing]
    return padded
