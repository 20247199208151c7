"""Adapters over frozen torch models: usable in a notebook, without Lightning."""

from peft_lightning.adapters.bank import AdapterBank
from peft_lightning.adapters.base import Adapter, attached_adapter
from peft_lightning.adapters.folder import load_adapter, read_adapter, save_adapter
from peft_lightning.adapters.full import Full
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.prompts.p_tuning import PTuning
from peft_lightning.adapters.prompts.prefix_tuning import PrefixTuning
from peft_lightning.adapters.prompts.prompt_tuning import PromptTuning

__all__ = [
    "Adapter",
    "AdapterBank",
    "Full",
    "LoRA",
    "PTuning",
    "PrefixTuning",
    "PromptTuning",
    "attached_adapter",
    "load_adapter",
    "read_adapter",
    "save_adapter",
]
