"""What changes only the speed or the memory of a computation, never its result.

The door is ``patch.py``: ``patch_model(model)`` changes a base model in place, and returns a report
of what it did, which can be undone. No other room replaces the forward of a layer.

Behind it: attention over flat batches (``attention.py`` chooses among the others), fused norms,
gated MLPs and rotary embeddings, activation checkpointing, compiled layers, and dtypes:
``precision.py`` decides, ``float32_compute.py`` and ``packed_weights.py`` compute in float32 from
smaller weights. ``native`` has the C++ kernels.
"""
