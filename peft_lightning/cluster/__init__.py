"""Processes and machines: signals, preemption, SLURM, several ranks."""
