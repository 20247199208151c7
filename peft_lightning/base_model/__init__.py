"""The frozen base: loading a causal LM and its tokenizer, and knowing a base again."""

from peft_lightning.base_model.fingerprint import base_fingerprint
from peft_lightning.base_model.load import load_base_model
from peft_lightning.base_model.tokenizer import load_tokenizer

__all__ = ["base_fingerprint", "load_base_model", "load_tokenizer"]
