"""Comparisons: runs evaluated on the same rows, and which of their differences are beyond noise.

``compare.py`` is where to start. ``runs.py`` finds the runs, ``groups.py`` puts those together that
differ in their seed alone, ``evaluate.py`` computes the loss of each row and answers prompts,
``statistics.py`` tells noise from differences, and ``conclusions.py`` says so in sentences. The
pages and tables are made in ``reports/``.
"""
