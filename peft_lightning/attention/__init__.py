"""Attention over flat batches: on a CPU, on a GPU, and when compiled."""

from peft_lightning.attention.flat import NAME, flat_inputs, isolation_error
from peft_lightning.attention.varlen import has_varlen

__all__ = ["NAME", "flat_inputs", "has_varlen", "isolation_error"]
