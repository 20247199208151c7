"""What changes only the speed or the memory of a computation, never its result.

Attention over flat batches (``attention.py`` chooses among the others), fused norms, gated MLPs
and rotary embeddings, activation checkpointing, compiled layers, and number types:
``precision.py`` decides, ``float32_compute.py`` and ``packed_weights.py`` compute in float32 from
smaller weights. ``native`` has the C++ kernels.
"""
