"""Sweeps: many runs of one config over values and seeds, each in a folder of its own.

``values.py`` reads what ``--vary`` says, ``points.py`` makes the list of runs, ``names.py`` names
their folders, ``state.py`` is ``sweep.json``. ``runner.py`` trains the points in turn, each in the
process of ``process.py``; ``halving.py`` stops the worse half early; ``slurm.py`` is for a cluster.
"""
