"""Runs over several processes and machines, and runs that a scheduler stops.

Start with ``preemption.py``: from a stop signal to a checkpoint. ``strategies.py`` and ``fsdp2.py``
spread a model, ``job_script.py`` writes a SLURM job.
"""
