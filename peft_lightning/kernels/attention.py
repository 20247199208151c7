"""Attention over flat batches: sequences laid end to end that do not see each other.

Registered with transformers' ``AttentionInterface`` as ``FLAT_ATTENTION``. A model called with
``seq_lens`` runs one causal attention per sequence, without any mask, with grouped-query heads
as they are, or on a GPU torch's kernel for all of them at once, where that can; called without
(generation, padded batches) it is transformers' own ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from peft_lightning.kernels.attention_cpu import Causal, cpu_attention
from peft_lightning.kernels.attention_cuda import has_varlen, takes_varlen, varlen_attention
from peft_lightning.kernels.attention_op import compiled_attention

FLAT_ATTENTION = "peft_lightning"


def flat_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that make a model treat ``batch`` as separate sequences.

    Args:
        batch: A flat batch with ``cu_seq_lens`` (S + 1,) int32 and ``seq_lens``, S integers.

    Returns:
        ``seq_lens`` for this module's attention, the names that flash attention reads, and a
        4-D stand-in for the mask: transformers passes 4-D masks on as they are, which keeps it
        from building one that is quadratic in the length of the batch.
    """
    longest = max(batch["seq_lens"])
    return {
        "seq_lens": tuple(batch["seq_lens"]),
        "cu_seq_lens_q": batch["cu_seq_lens"],
        "cu_seq_lens_k": batch["cu_seq_lens"],
        "max_length_q": longest,
        "max_length_k": longest,
        "attention_mask": torch.empty((1, 1, 1, 1), device=batch["cu_seq_lens"].device),
    }


def forward_inputs(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of ``model.forward`` for a prepared batch without labels.

    Args:
        model: A causal LM of transformers, with any attention.
        batch: Flat, with ``cu_seq_lens`` and ``seq_lens``; a padded one is returned as it is.
    """
    if "cu_seq_lens" not in batch:
        return batch
    inputs = {**batch, **flat_inputs(batch)}
    del inputs["cu_seq_lens"]
    if model.config._attn_implementation != FLAT_ATTENTION:
        for name in ("seq_lens", "attention_mask"):  # transformers builds its own packed masks
            del inputs[name]
    return inputs


def attention_per_sequence(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    seq_lens: Sequence[int] | None = None,
    prefix_len: int = 0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence of a flat batch, and to a prefix of all of them if there is one.

    Args:
        module: The attention layer, as transformers passes it.
        query: (1, H, T, D).
        key: (1, Hkv, n + T, D), Hkv a divisor of H; the first n, from a cache, are seen by all.
        value: (1, Hkv, n + T, Dv).
        attention_mask: Used only without ``seq_lens``.
        scaling: Factor on the scores; 1 / sqrt(D) if None.
        dropout: Probability of dropping an attention weight.
        sliding_window: Keys that a query sees, itself included; None for all.
        softcap: ``softcap * tanh(scores / softcap)``; None for none.
        s_aux: (H,) attention sinks: a score per head that takes weight and gives no value.
        seq_lens: Lengths of the sequences; they add up to T.
        prefix_len: Length of the first sequence if all the others see it, as if each began with it;
            0 if they do not.
        **kwargs: What else transformers passes; not used on flat batches.

    Returns:
        (1, T, H, Dv), and no attention weights.
    """
    ends = kwargs.get("cu_seq_lens_q")
    compiles = torch.compiler.is_compiling() and query.device.type == "cpu"
    if compiles and ends is not None and s_aux is None and dropout == 0:
        scale = scaling or query.shape[-1] ** -0.5  # seq_lens unread: it would be compiled in
        return compiled_attention(query, key, value, ends, scale, sliding_window, softcap), None
    if seq_lens is None:
        if softcap is not None or s_aux is not None:
            mask = attention_mask
            if mask is None and getattr(module, "is_causal", True):  # nothing but the triangle
                mask = _causal_mask(query, key)
            out = _explicit(query, key, value, mask, scaling, dropout, softcap, s_aux)
            return out.transpose(1, 2).contiguous(), None
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    plain = softcap is None and s_aux is None and dropout == 0 and not prefix_len
    if plain and has_varlen(query.device) and takes_varlen(query, key, value):
        ends, longest = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
        return varlen_attention(query, key, value, ends, longest, scaling, sliding_window), None
    lens = key_lens = list(seq_lens)
    if n := prefix_len or key.shape[2] - query.shape[2]:
        own, rest = ([n], lens[1:]) if prefix_len else ([], lens)
        key_lens = own + [n + length for length in rest]
        key, value = (_before_each(x, n, own, rest) for x in (key, value))
    if query.device.type == "cpu" and s_aux is None and dropout == 0:
        causal = Causal(scaling or query.shape[-1] ** -0.5, sliding_window, softcap)
        return cpu_attention(query, key, value, lens, key_lens, causal), None
    grouped = query.shape[1] != key.shape[1]
    parts = []
    split = query.split(lens, dim=2), key.split(key_lens, dim=2), value.split(key_lens, dim=2)
    for q, k, v in zip(*split, strict=True):
        mask = _window_mask(q, k, sliding_window)
        if softcap is not None or s_aux is not None:
            mask = _causal_mask(q, k) if mask is None else mask
            parts.append(_explicit(q, k, v, mask, scaling, dropout, softcap, s_aux))
        else:
            parts.append(
                F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    dropout_p=dropout,
                    is_causal=mask is None,
                    scale=scaling,
                    enable_gqa=grouped,
                )
            )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _same_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Repeat each key and value head for the query heads that share it."""
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return query, key, value
    return query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _before_each(x: Tensor, n: int, own: list[int], rest: list[int]) -> Tensor:
    """Repeat the first ``n`` keys or values before each of the sequences that follow them.

    Args:
        x: (1, G, n + T, D).
        n: Those that every sequence sees.
        own: ``[n]`` to keep them as a sequence of their own too, else empty.
        rest: Lengths of the sequences; they add up to T.
    """
    first, *parts = x.split([n, *rest], dim=2)
    copies = first.expand(len(rest), -1, -1, -1).split(1)  # one sum for the gradient of all
    pairs = [piece for pair in zip(copies, parts, strict=True) for piece in pair]
    return torch.cat([first, *pairs] if own else pairs, dim=2)


def _causal_mask(query: Tensor, key: Tensor) -> Tensor:
    """Return the (L, K) mask of queries that are the last of the keys."""
    length, keys = query.shape[2], key.shape[2]
    return torch.ones(length, keys, dtype=torch.bool, device=query.device).tril(keys - length)


def _window_mask(query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """Return the (L, K) mask, or None where that is the plain triangle."""
    length, keys = query.shape[2], key.shape[2]
    mask = None if keys == length else _causal_mask(query, key)
    if window is None or keys <= window:
        return mask
    return _causal_mask(query, key).triu(keys - length + 1 - window)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Write attention out, for what no fused kernel has: soft caps and sinks."""
    query, key, value = _same_heads(query, key, value)
    scores = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)  # (B, H, L, L)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        low = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, low) if mask.dtype == torch.bool else scores + mask
    if s_aux is not None:
        sinks = s_aux.view(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        weights = torch.cat((scores, sinks), dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = F.dropout(weights.to(value.dtype), dropout, training=dropout > 0)
    return weights @ value


AttentionInterface.register(FLAT_ATTENTION, attention_per_sequence)
AttentionMaskInterface.register(FLAT_ATTENTION, sdpa_mask)
