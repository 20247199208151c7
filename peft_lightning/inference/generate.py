"""Answers to prompts, in batches: left-padded, of similar lengths, with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase


class PreparesInputs(Protocol):
    """What is needed of an adapter."""

    def prepare_inputs(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
        """Return ``batch`` as keyword inputs of ``model``."""

    def is_padding_sensitive(self, model: nn.Module) -> bool:
        """Whether padding would change answers, so that only rows of one length go together."""


def generate_tokens(
    model: Any,
    adapter: PreparesInputs | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    *,
    batch_size: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    end_ids: Collection[int] | None = None,
    skip: Collection[int] = (),
    on_answers: Callable[[list[int], list[list[int]]], None] | None = None,
    streamer: Any = None,
) -> list[list[int]]:
    """Continue token sequences.

    The sampling settings that come with a model (penalties, top_k) are not used: temperature 0
    is the most probable token each time, whatever else is in the batch.

    Args:
        model: A causal LM of transformers, with ``adapter`` attached; in any mode.
        adapter: None for the bare model.
        tokenizer: The model's.
        rows: Token ids, none empty.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts at a time, those of similar length together.
        temperature: What the logits are divided by; 0 takes the most probable token.
        top_p: Sample only from the most probable tokens that together have this probability.
        seed: Of the samples; the global random state is left alone.
        end_ids: Ids that end an answer; those of the model and tokenizer if None.
        skip: Numbers of rows that need no answer; batches are the same as without, so that what
            was cut off goes on to the same samples.
        on_answers: Called after each batch with the numbers of its rows and their answers.
        streamer: transformers' streamer for the answer to a single row.

    Returns:
        The new token ids of each row, without the one that ended them.

    Raises:
        ValueError: For an option out of its range, an empty row, or a row that leaves no room for
            ``max_new_tokens`` within the model's positions.
    """
    _check(max_new_tokens, batch_size, temperature, top_p)
    if any(len(row) == 0 for row in rows):
        raise ValueError(f"prompt {[len(row) for row in rows].index(0)} has no tokens")
    ends = sorted(find_end_ids(model, tokenizer) if end_ids is None else end_ids)
    known = (tokenizer.pad_token_id, *ends, 0)
    pad = next(i for i in known if i is not None)  # never seen: it is masked
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=top_p if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    padded = adapter is None or not adapter.is_padding_sensitive(model)
    answers: list[list[int]] = [[] for _ in rows]
    devices = [model.device] if model.device.type == "cuda" else []
    with _bare(model), torch.random.fork_rng(devices), torch.no_grad():
        for start, picked in _batches([len(row) for row in rows], batch_size, padded):
            if all(i in skip for i in picked):
                continue
            torch.manual_seed(seed + start)
            batch = _left_padded([rows[i] for i in picked], pad, model.device)
            inputs = batch if adapter is None else adapter.prepare_inputs(model, batch)
            _check_room(model, inputs["attention_mask"].shape[1], max_new_tokens, picked[-1])
            output = model.generate(**inputs, generation_config=config, streamer=streamer)
            if "input_ids" in inputs:  # given back before the answer; embeddings are not
                output = output[:, inputs["input_ids"].shape[1] :]
            for i, ids in zip(picked, output.tolist(), strict=True):
                answers[i] = _until(ids, ends)
            if on_answers is not None:
                on_answers(picked, [answers[i] for i in picked])
    return answers


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of ``prompt`` as a user's message; as plain text without a chat template."""
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt)["input_ids"])
    message = {"role": "user", "content": prompt}
    with _template_explained():
        encoded: Any = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=True
        )
    return list(encoded["input_ids"])


def find_end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that end an answer: the model's, the tokenizer's and the end of a turn."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    ids = set(ends if isinstance(ends, list) else [ends]) | {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with _template_explained():
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        after = tokenizer(text.rpartition("b")[2].lstrip(), add_special_tokens=False)["input_ids"]
        if after and after[0] in tokenizer.added_tokens_decoder:
            ids.add(after[0])
    return {i for i in ids if i is not None}


@contextmanager
def _template_explained() -> Iterator[None]:
    """Make one ValueError of whatever a template, a program from elsewhere, raises."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"the chat template refuses the messages: {error}") from error


def _batches(lengths: list[int], size: int, padded: bool) -> Iterator[tuple[int, list[int]]]:
    """Yield the numbers of the rows of each batch, the shortest first, and how many come before.

    Args:
        lengths: Of the rows.
        size: Most rows of a batch.
        padded: Whether rows of different lengths go together.
    """
    order, start = sorted(range(len(lengths)), key=lambda i: lengths[i]), 0
    while start < len(order):
        picked = order[start : start + size]
        if not padded:
            picked = [i for i in picked if lengths[i] == lengths[picked[0]]]
        yield start, picked
        start += len(picked)


def _left_padded(rows: list[Sequence[int]], pad: int, device: Any) -> dict[str, Any]:
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


def _until(ids: list[int], ends: list[int]) -> list[int]:
    stop = next((k for k, i in enumerate(ids) if i in ends), len(ids))
    return ids[:stop]


@contextmanager
def _bare(model: Any) -> Iterator[None]:
    """Evaluate ``model`` by what the arguments say alone: no dropout, no settings of its own."""
    training = [module for module in model.modules() if module.training]
    own, model.generation_config = model.generation_config, GenerationConfig()
    for module in training:
        module.training = False
    try:
        yield
    finally:
        model.generation_config = own
        for module in training:
            module.training = True


def _check(max_new_tokens: int, batch_size: int, temperature: float, top_p: float) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")


def _check_room(model: Any, length: int, max_new_tokens: int, row: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length + max_new_tokens > positions:
        raise ValueError(
            f"prompt {row} has {length} tokens, virtual ones included, and with max_new_tokens "
            f"{max_new_tokens} it exceeds the model's {positions} positions"
        )
