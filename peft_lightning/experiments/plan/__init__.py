"""Plans: what a run will need, and what to change so that it fits a memory.

``plan.py`` is what a plan says. ``measured_run.py`` makes it from a few timed steps of the run
itself, ``elsewhere.py`` by arithmetic for a GPU that is not here; ``advice.py`` finds the cheapest
changes that fit, and ``text.py`` prints all of it.
"""
