"""Experiments: planning a run, repeating it over values and seeds, and comparing the results.

``plan/`` says what a run will need, ``sweep/`` trains one config over values and seeds,
``compare/`` evaluates runs and says which differences are beyond noise, and ``rate_test.py`` finds
a learning rate. Each is a command of the same name.
"""
