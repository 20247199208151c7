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
from peft_lightning.inference.answer_text import (
    AnswerStreamer,
    StopsAtStrings,
    decode_answer,
    special_stops,
    stop_strings,
    until_end,
)
from peft_lightning.inference.limits import check_options, check_prompts
from peft_lightning.inference.padding import ALONE, EQUAL_LENGTH, PADDED, batches_of
from peft_lightning.inference.prompt_inputs import (
    PreparesInputs,
    first_logits,
    prompt_inputs,
    taking_embeddings,
)
from peft_lightning.inference.stop_tokens import stop_token_ids
from peft_lightning.kernels.own_forward import own_forward


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
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
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
        stop: Strings that end an answer; ``decode_answer`` leaves them out of its text. One that is
            a special token ends it as those of ``end_ids`` do.
        on_text: Called with each new piece of the answer's text, for a single row. No part of a
            stop string is handed on.

    Returns:
        The new token ids of each row, without the token that ended them, or with those of the stop
        string.

    Raises:
        UserError: If an option is out of its range, a row is empty, or a row and
            ``max_new_tokens`` together exceed the model's positions.
    """
    check_options(max_new_tokens, batch_size, temperature, top_p, seed)
    ends = sorted(stop_token_ids(model, tokenizer) if end_ids is None else end_ids)
    if stop:
        ends += special_stops(tokenizer, stop).values()
        stop = stop_strings(tokenizer, stop)
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
        check_prompts(model, adapter, rows, max_new_tokens)
        together = PADDED if batch_size > 1 else ALONE
        if together == PADDED:
            probe = GenerationConfig(
                max_new_tokens=min(2, max_new_tokens),
                pad_token_id=pad,
                output_logits=True,
                return_dict_in_generate=True,
            )
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
            steps: list[Any] = []
            if on_token is not None:
                steps.append(_Steps(on_token, len(picked) / max_new_tokens))
            with taking_embeddings(model, inputs) as given:
                # generate repeats input ids, but no input embeddings
                width = given["input_ids"].shape[1] if "input_ids" in given else 0
                at_strings = StopsAtStrings(tokenizer, stop, width) if stop else None
                printing = AnswerStreamer(tokenizer, ends, stop, on_text) if on_text else None
                output = model.generate(
                    **given,
                    generation_config=config,
                    streamer=printing,
                    stopping_criteria=StoppingCriteriaList([*steps, *filter(None, [at_strings])]),
                )
            for row, (i, ids) in enumerate(zip(picked, output[:, width:].tolist(), strict=True)):
                ended = at_strings.lengths.get(row) if at_strings else None
                answers[i] = until_end(ids[:ended], ends)
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
    return [decode_answer(tokenizer, ids, options.get("stop", ())) for ids in answers]


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


@contextmanager
def _plain_evaluation(model: Any) -> Iterator[None]:
    """Let ``model`` evaluate by its own attention and layers, without its generation config.

    Answers are then those of its own forward, and no faster function could change them.
    """
    training = [module for module in model.modules() if module.training]
    forward = own_forward(model)
    own, model.generation_config = model.generation_config, GenerationConfig()
    for module in training:
        module.training = False
    try:
        with forward.using():
            yield
    finally:
        model.generation_config = own
        for module in training:
            module.training = True
