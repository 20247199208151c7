"""Text from a model: loading it with its adapters, and generating in batches.

Start with ``load.py``; ``generate.py`` generates, ``partial_file.py`` keeps completions of an
interrupted run.
"""
