"""Train small adapters on frozen language models: LoRA and its relatives, in PyTorch Lightning.

The public names are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # not typing's, which takes as long to import as all else that is here
if TYPE_CHECKING:
    from typing import Any

    from peft_lightning.adapters import (
        IA3,
        OFT,
        Adapter,
        AdapterBank,
        Full,
        LoRA,
        MiSS,
        Partial,
        PrefixTuning,
        PromptTuning,
        PTuning,
    )
    from peft_lightning.adapters.folder import load_adapter, read_adapter, save_adapter
    from peft_lightning.base_model import load_base_model, load_tokenizer
    from peft_lightning.data.datamodule import SFTDataModule
    from peft_lightning.messages import UserError
    from peft_lightning.module import CausalLMModule
    from peft_lightning.training.schedules import Constant, Cosine, Linear, Schedule
    from peft_lightning.training.trainer import Trainer

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapters",
    "AdapterBank": "adapters",
    "CausalLMModule": "module",
    "Constant": "training.schedules",
    "Cosine": "training.schedules",
    "Full": "adapters",
    "IA3": "adapters",
    "Linear": "training.schedules",
    "LoRA": "adapters",
    "MiSS": "adapters",
    "OFT": "adapters",
    "PTuning": "adapters",
    "Partial": "adapters",
    "PrefixTuning": "adapters",
    "PromptTuning": "adapters",
    "SFTDataModule": "data.datamodule",
    "Schedule": "training.schedules",
    "Trainer": "training.trainer",
    "UserError": "messages",
    "load_adapter": "adapters.folder",
    "load_base_model": "base_model",
    "load_tokenizer": "base_model",
    "read_adapter": "adapters.folder",
    "save_adapter": "adapters.folder",
}

__all__ = [
    "IA3",
    "OFT",
    "Adapter",
    "AdapterBank",
    "CausalLMModule",
    "Constant",
    "Cosine",
    "Full",
    "Linear",
    "LoRA",
    "MiSS",
    "PTuning",
    "Partial",
    "PrefixTuning",
    "PromptTuning",
    "SFTDataModule",
    "Schedule",
    "Trainer",
    "UserError",
    "load_adapter",
    "load_base_model",
    "load_tokenizer",
    "read_adapter",
    "save_adapter",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
