"""Experiments: planning a run, repeating it over values and seeds, and comparing the results."""
