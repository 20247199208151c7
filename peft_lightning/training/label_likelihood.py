"""Classification by likelihood: the label that is the most probable answer to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from peft_lightning.data.collate import Batch, flat_collate, padded_collate
from peft_lightning.data.tokens.tokenizer import continuation_ids

MOST_TOKENS = 8192  # of a batch
MOST_LOGITS = 2**25  # 128 MiB in float32


def label_log_likelihoods(
    module: Any,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    *,
    pad_id: int | None = None,
    on_row: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Return log p(label | prompt) of each label after each prompt, in nats.

    That is the sum over the label's tokens, those that end the answer included: "no" is not the
    beginning of "not sure".

    Args:
        module: The ``CausalLMModule``, in eval mode.
        prompts: Token ids of each prompt.
        labels: Token ids of each label.
        pad_id: Token id of the padding, for a model that takes rows with padding; None for one
            that takes them one after the other.
        on_row: Called with the number of prompts that are done.
    """

    def collate(rows: list[Batch]) -> Batch:
        batch = flat_collate(rows) if pad_id is None else padded_collate(rows, pad_id)
        to = {k: v.to(module.device) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        return {**batch, **to}

    found: list[list[float]] = []
    vocabulary = module.model.get_output_embeddings().weight.shape[0]
    with torch.no_grad():
        for prompt in prompts:
            sums: list[float] = []
            for chosen in _batches(len(prompt), labels, max(1, MOST_LOGITS // vocabulary)):
                rows = [_row(prompt, label) for label in chosen]
                logits, targets = module.labelled_logits(collate(rows))
                wide = torch.promote_types(logits.dtype, torch.float32)
                of_tokens = -torch.nn.functional.cross_entropy(
                    logits.to(wide), targets, reduction="none"
                )
                parts = of_tokens.double().split([len(label) for label in chosen])
                sums += [float(part.sum()) for part in parts]
            found.append(sums)
            on_row(len(found))
    return found


def label_ids(
    tokenizer: Any, labels: Sequence[str], answers: Sequence[tuple[str, Sequence[int]]]
) -> list[list[int]]:
    """Return the token ids of labels as answers, with the tokens that end an answer.

    Args:
        tokenizer: The tokenizer.
        labels: The labels.
        answers: Texts and token ids of the rows' answers. A label among them has their ids; any
            other begins and ends as the first of them does.
    """
    known: dict[str, list[int]] = {}
    for text, ids in answers:
        known.setdefault(text, list(ids))
    before, ending = _around(tokenizer, known)
    return [
        known.get(label) or [*continuation_ids(tokenizer, before + label, first=False), *ending]
        for label in labels
    ]


def _around(tokenizer: Any, answers: dict[str, list[int]]) -> tuple[str, list[int]]:
    """Return the white space before the text of an answer, and the token ids behind it."""
    text, ids = next(((text, ids) for text, ids in answers.items() if text), ("", []))
    if not text:
        return "", next(iter(answers.values()))
    end = len(ids)
    while end > 1 and text in tokenizer.decode(ids[: end - 1]):
        end -= 1
    found = tokenizer.decode(ids[:end]).partition(text)[0]
    for before in dict.fromkeys([found, " ", ""]):  # decoding may lose a space
        if continuation_ids(tokenizer, before + text, first=False) == ids[:end]:
            return before, ids[end:]
    return found, ids[end:]


def _row(prompt: Sequence[int], label: Sequence[int]) -> Batch:
    ids = np.array([*prompt, *label])
    return {"input_ids": ids, "labels": np.where(np.arange(len(ids)) < len(prompt), -100, ids)}


def _batches(
    length: int, labels: Sequence[Sequence[int]], most_labelled: int
) -> Iterator[list[Sequence[int]]]:
    """Yield labels for one batch each, in order: all behind one prompt, which is computed once."""
    batch: list[Sequence[int]] = []
    for label in labels:
        longer = [*batch, label]
        labelled = sum(map(len, longer))
        if batch and (labelled > most_labelled or len(longer) * length + labelled > MOST_TOKENS):
            yield batch
            longer = [label]
        batch = longer
    yield batch
