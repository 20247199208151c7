"""Runs over several processes and machines, and runs that a scheduler stops.

Start with ``preemption.py``: from a stop signal to a checkpoint. ``launch.py`` finds the processes
that there are, ``agreement.py`` compares what they train on, ``partners.py`` ends them together;
``strategies.py`` and ``fsdp2.py`` spread a model. ``job_script.py`` writes a SLURM job,
``submission.py`` what it trains by, and ``job_starts.py`` how often it has started.
"""
