"""LoRA (Hu et al. 2021, arXiv:2106.09685) and the modules that HF PEFT trains beside it.

Start with ``layers.py``, the layer ``base_layer(x) + scaling * B(A(x))``, and ``method.py``, the
configuration and how it changes a model. ``dora.py``, ``embedding.py``, ``modules_to_save.py`` and
``trainable_tokens.py`` are the other layers; ``autograd.py`` computes several updates at once.
"""

from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d, is_linear
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper
from peft_lightning.adapters.lora.trainable_tokens import TrainableTokensLayer

__all__ = [
    "LoRA",
    "LoRALinear",
    "ModulesToSaveWrapper",
    "TrainableTokensLayer",
    "is_conv1d",
    "is_linear",
]
