"""Batched generation with an adapter."""

from __future__ import annotations

import torch


def encode_prompt(tokenizer, prompt):
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True)["input_ids"]
    return tokenizer(prompt)["input_ids"]


def generate_tokens(model, adapter, tokenizer, rows, max_new_tokens=128):
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (width - len(r)) + list(r) for r in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
    inputs = adapter.prepare_inputs(model, {"input_ids": ids, "attention_mask": mask})
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad)
    start = width if "input_ids" in inputs else 0
    return [o[start:].tolist() for o in out]
