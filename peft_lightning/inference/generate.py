"""Batched generation with or without an adapter: left-padded batches where the model allows it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from peft_lightning.data import PromptEncoder, PromptFormat
from peft_lightning.inference.padding import ALONE, EQUAL_LENGTH, PADDED, batches_of
from peft_lightning.inference.prompt_inputs import (
    PreparesInputs,
    first_logits,
    prompt_inputs,
    taking_embeddings,
)
from peft_lightning.inference.stop_tokens import stop_token_ids
from peft_lightning.messages import UserError


class UnknownTokenError(UserError):
    """A prompt has a token that the model has no embedding for."""


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
    on_token: Callable[[float], None] | None = None,
    streamer: Any = None,
) -> list[list[int]]:
    """Generate a continuation of each token sequence.

    The sampling settings of the model's generation config (penalties, ``top_k``) are not used:
    temperature 0 is greedy decoding, whatever else is in the batch.

    Args:
        model: A causal LM of transformers with ``adapter`` attached, in training or eval mode.
        adapter: The attached adapter; None for the base model.
        tokenizer: The model's tokenizer.
        rows: Token ids of each prompt, at least one.
        max_new_tokens: Largest number of tokens of an answer.
        batch_size: Prompts in a batch; prompts of similar length are batched together.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_p: Sample only from the most probable tokens whose probabilities sum up to this.
        seed: Seed of the samples. The global random state is left unchanged.
        end_ids: Ids that end an answer; ``stop_token_ids(model, tokenizer)`` if None.
        skip: Indices of rows that need no answer. The batches stay the same, so that an
            interrupted run continues with the same samples.
        on_answers: Called after each batch with the indices of its rows and their answers.
        on_token: Called after each token of a batch with the answers that it amounts to so far: all
            of them after ``max_new_tokens`` tokens. A batch may end earlier.
        streamer: A streamer of transformers, for the answer to a single row.

    Returns:
        The new token ids of each row, without the token that ended them.

    Raises:
        UserError: If an option is out of its range, a row is empty, or a row and
            ``max_new_tokens`` together exceed the model's positions.
    """
    _check(max_new_tokens, batch_size, temperature, top_p)
    if any(len(row) == 0 for row in rows):
        raise UserError(f"prompt {[len(row) for row in rows].index(0)} has no tokens")
    _require_embeddings(model, rows)
    ends = sorted(stop_token_ids(model, tokenizer) if end_ids is None else end_ids)
    candidates = (tokenizer.pad_token_id, *ends, 0)
    pad = next(i for i in candidates if i is not None)  # any will do: padding is masked
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        top_p=top_p if temperature > 0 else None,
        top_k=0 if temperature > 0 else None,
        eos_token_id=ends or None,
        pad_token_id=pad,
    )
    answers: list[list[int]] = [[] for _ in rows]
    devices = [model.device] if model.device.type == "cuda" else []
    with _plain_evaluation(model), torch.random.fork_rng(devices), torch.no_grad():
        if rows:
            longest = max(range(len(rows)), key=lambda i: len(rows[i]))
            inputs = prompt_inputs(model, adapter, [rows[longest]], pad)
            _check_room(model, inputs["attention_mask"].shape[1], max_new_tokens, longest)
        together = PADDED if batch_size > 1 else ALONE
        if together == PADDED:
            probe = GenerationConfig(max_new_tokens=min(2, max_new_tokens), pad_token_id=pad)
            together = batches_of(
                model, adapter, rows, partial(first_logits, model, adapter, probe)
            )
        if together == PADDED and adapter is not None and adapter.is_padding_sensitive(model):
            together = EQUAL_LENGTH
        size = 1 if together == ALONE else batch_size
        for start, picked in _batches([len(row) for row in rows], size, together == PADDED):
            if all(i in skip for i in picked):
                continue
            torch.manual_seed(seed + start)
            inputs = prompt_inputs(model, adapter, [rows[i] for i in picked], pad)
            steps = [] if on_token is None else [_Steps(on_token, len(picked) / max_new_tokens)]
            with taking_embeddings(model, inputs) as given:
                output = model.generate(
                    **given,
                    generation_config=config,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList(steps),
                )
            if "input_ids" in given:  # generate repeats input ids, but no input embeddings
                output = output[:, given["input_ids"].shape[1] :]
            for i, ids in zip(picked, output.tolist(), strict=True):
                answers[i] = _until(ids, ends)
            if on_answers is not None:
                on_answers(picked, [answers[i] for i in picked])
    return answers


class _Steps(StoppingCriteria):
    """Calls a function after each token, and stops nothing."""

    def __init__(self, on_token: Callable[[float], None], answers_per_token: float) -> None:
        self.on_token, self.answers_per_token, self.tokens = on_token, answers_per_token, 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self.tokens += 1
        self.on_token(self.tokens * self.answers_per_token)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate_texts(
    model: Any,
    adapter: PreparesInputs | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    prompt_format: PromptFormat = PromptFormat(),  # noqa: B008  (frozen)
    **options: Any,
) -> list[str]:
    """Answer prompts, and decode the answers without special tokens and surrounding white space.

    Args:
        model: As in ``generate_tokens``.
        adapter: As in ``generate_tokens``.
        tokenizer: As in ``generate_tokens``.
        prompts: Texts, each of which becomes a user message if there is a chat template; or token
            ids, which are used as they are.
        max_new_tokens: Largest number of tokens of an answer.
        prompt_format: How texts become token ids.
        **options: Those of ``generate_tokens``.
    """
    encoder = PromptEncoder(tokenizer, prompt_format)
    rows = [encoder.encode(p) if isinstance(p, str) else p for p in prompts]
    answers = generate_tokens(model, adapter, tokenizer, rows, max_new_tokens, **options)
    return [decode_answer(tokenizer, ids) for ids in answers]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Return the text of an answer, without special tokens and surrounding white space."""
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def reference_text(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: Collection[int]
) -> str:
    """Return the text of a row's own answer as one that is generated would have it.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids of the answer, with those that end it.
        ends: The ids that end an answer, of ``stop_token_ids``.
    """
    return decode_answer(tokenizer, _until(ids, ends))


def _batches(lengths: list[int], size: int, padded: bool) -> Iterator[tuple[int, list[int]]]:
    """Yield each batch as the number of rows before it and the indices of its rows.

    Args:
        lengths: Tokens of each row; short rows come first.
        size: Largest number of rows in a batch.
        padded: Whether a batch may have rows of different lengths.
    """
    order, start = sorted(range(len(lengths)), key=lambda i: lengths[i]), 0
    while start < len(order):
        picked = order[start : start + size]
        if not padded:
            picked = [i for i in picked if lengths[i] == lengths[picked[0]]]
        yield start, picked
        start += len(picked)


def _until(ids: list[int], ends: Collection[int]) -> list[int]:
    stop = next((k for k, i in enumerate(ids) if i in ends), len(ids))
    return ids[:stop]


@contextmanager
def _plain_evaluation(model: Any) -> Iterator[None]:
    """Put ``model`` into eval mode without its generation config, and restore both afterwards."""
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
            raise UserError(f"{name} must be at least 1, got {value}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")


def _require_embeddings(model: Any, rows: Sequence[Sequence[int]]) -> None:
    embedding = model.get_input_embeddings()
    known = embedding.weight.shape[0] + getattr(embedding, "extra", 0)
    if (largest := max((max(row) for row in rows), default=0)) >= known:
        raise UnknownTokenError(
            f"a prompt has the token id {largest}, and the model has an embedding for {known}: the "
            "tokenizer has more tokens than the model"
        )


def _check_room(model: Any, length: int, max_new_tokens: int, row: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length + max_new_tokens > positions:
        raise UserError(
            f"prompt {row} has {length} tokens, virtual ones included, and with max_new_tokens "
            f"{max_new_tokens} it exceeds the model's {positions} positions"
        )
