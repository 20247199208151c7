"""Adapters over frozen torch models, usable in a notebook without Lightning.

Start with ``base.py``, the interface of every method, and ``lora/``, the most used of them.
``folder.py`` reads and writes HF PEFT's folders, ``bank.py`` switches between adapters,
``disable.py`` takes one out for a while, ``merge.py`` adds updates to the base's weights,
``inspect.py`` describes a folder's content, and ``lookup.py`` finds the class of a folder. An
adapter of your own needs ``Adapter``, ``Targets`` and ``adapter_dtype``: see examples/my_ia3.py.
"""

from peft_lightning.adapters.bank import BASE, AdapterBank
from peft_lightning.adapters.base import Adapter, adapter_dtype, attached_adapter
from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.disable import disable_adapter
from peft_lightning.adapters.folder import (
    CONFIG_FILE,
    FACTS_FILE,
    SavedAdapter,
    adapter_texts,
    load_adapter,
    read_adapter,
    read_adapter_config,
    read_facts,
    save_adapter,
    write_files,
)
from peft_lightning.adapters.full import Full
from peft_lightning.adapters.ia3 import IA3
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.targets import Targets
from peft_lightning.adapters.miss import MiSS
from peft_lightning.adapters.oft import OFT
from peft_lightning.adapters.partial import Partial
from peft_lightning.adapters.prompts.p_tuning import PTuning
from peft_lightning.adapters.prompts.prefix_tuning import PrefixTuning
from peft_lightning.adapters.prompts.prompt_tuning import PromptTuning

__all__ = [
    "BASE",
    "CONFIG_FILE",
    "FACTS_FILE",
    "IA3",
    "OFT",
    "Adapter",
    "AdapterBank",
    "Full",
    "LoRA",
    "MiSS",
    "PTuning",
    "Partial",
    "PrefixTuning",
    "PromptTuning",
    "SavedAdapter",
    "Targets",
    "adapter_dtype",
    "adapter_texts",
    "attached_adapter",
    "disable_adapter",
    "load_adapter",
    "read_adapter",
    "read_adapter_config",
    "read_facts",
    "require_base",
    "save_adapter",
    "write_files",
]
