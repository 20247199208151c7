"""Rotary embeddings that are stretched for longer texts: what llama.cpp finds of them in a file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def longrope_scale(factor: float, original: int) -> float:
    """Return what LongRoPE multiplies queries and keys by, for ``factor`` times the positions."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def llama3_divisors(rope: dict[str, Any], head_dim: int) -> Tensor:
    """Return what Llama 3.1 divides each rotary frequency by, (d/2,) float32.

    Waves longer than the original context over ``low_freq_factor`` are slowed down by ``factor``,
    those shorter than it over ``high_freq_factor`` are kept, and between them it goes linearly.
    """
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    waves = 2 * math.pi * rope["rope_theta"] ** exponents
    turns = rope["original_max_position_embeddings"] / waves
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).float()
