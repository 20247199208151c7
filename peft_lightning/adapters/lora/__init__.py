"""LoRA (Hu et al. 2021, arXiv:2106.09685) and what HF PEFT trains with it.

Start with ``method.py``, the configuration and how it changes a model, and ``layers.py``, the layer
``base_layer(x) + scaling * B(A(x))``. ``autograd.py`` computes updates of several layers at once.
"""
