"""Trained virtual tokens before the text: prompt tuning, p-tuning and prefix tuning.

Start with ``base.py``, which the methods share, and ``prompt_tuning.py``, the simplest of them.
``positions.py`` computes the positions of virtual tokens in a batch.
"""

from peft_lightning.adapters.prompts.p_tuning import PTuning
from peft_lightning.adapters.prompts.prefix_tuning import PrefixTuning
from peft_lightning.adapters.prompts.prompt_tuning import PromptTuning

__all__ = ["PTuning", "PrefixTuning", "PromptTuning"]
