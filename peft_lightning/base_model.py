"""Loading a frozen causal LM: hub id, local folder or GGUF file."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_base_model(name, *, dtype="auto", attn_implementation="auto", trust_remote_code=False, revision=None, frozen=True, device=None):
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype if dtype == "auto" else getattr(torch, dtype), attn_implementation="sdpa" if attn_implementation == "auto" else attn_implementation, trust_remote_code=trust_remote_code, revision=revision or "main")
    return model.requires_grad_(not frozen).eval()


def load_tokenizer(name, *, trust_remote_code=False, revision=None):
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main")


def base_fingerprint(model):
    return {"architecture": type(model).__name__}


def checkpoint_activations(model):
    pass
