"""What needs a Lightning trainer, or belongs to one run.

Start with ``callbacks.py``, the callbacks of every run, and ``checkpoint.py``, checkpoints that are
HF PEFT folders. ``cluster`` has what several processes and preemption need.
"""
