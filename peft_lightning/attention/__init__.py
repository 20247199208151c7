"""Attention over flat batches: on a CPU, on a GPU, and when compiled."""

from peft_lightning.attention.flat import NAME, flat_inputs, isolation_error
from peft_lightning.attention.shared_prefix import prefix_error, share_prefix
from peft_lightning.attention.varlen import has_varlen
from peft_lightning.attention.whole_blocks import compiles_products, in_whole_blocks

__all__ = [
    "NAME",
    "compiles_products",
    "flat_inputs",
    "has_varlen",
    "in_whole_blocks",
    "isolation_error",
    "prefix_error",
    "share_prefix",
]
