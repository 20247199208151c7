"""This process: its signals, its share of the machine, its SLURM job, and the progress it shows.

Nothing here imports torch, so all of it works while the imports of a command run. Start with
``signals.py``.
"""
