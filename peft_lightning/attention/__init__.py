"""Attention over flat batches: on a CPU, on a GPU, and when compiled."""

from peft_lightning.attention.flat import (
    NAME,
    attention_per_sequence,
    flat_inputs,
    isolation_error,
)
from peft_lightning.attention.varlen import has_varlen

__all__ = ["NAME", "attention_per_sequence", "flat_inputs", "has_varlen", "isolation_error"]
