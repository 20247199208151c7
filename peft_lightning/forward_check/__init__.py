"""No model's loss differs from the model's own: what our forward computes is compared with its.

Start with ``check.py``, which gives the loss a batch in the fastest way that is exact, one of
``ways.py``. ``search.py`` finds it, on the sequences of ``probes.py``, and ``memory.py`` keeps what
was found on disk.
"""

from peft_lightning.forward_check.check import ForwardCheck

__all__ = ["ForwardCheck"]
