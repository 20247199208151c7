"""The frozen layers below the adapter: run without gradients, or once for all epochs.

Start with ``cache.py``: training from hidden states on disk, which ``store.py`` writes and reads.
``frozen_layers.py`` says which decoder layers no gradient reaches.
"""
