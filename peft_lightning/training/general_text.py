"""The loss of a model on general text: what an adapter must not make it forget."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from peft_lightning.adapters import Adapter, disable_adapter
from peft_lightning.data.collate import padded_collate
from peft_lightning.files import read_text
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError

GENERAL_TEXT = "general_text.jsonl"  # of the package
LONGEST = 1024  # tokens of a part of a passage
ROWS = 8  # in a batch


@dataclass(frozen=True)
class TextLoss:
    """The loss on texts, each token of which is predicted from those before it.

    Attributes:
        nll: Summed loss in nats.
        tokens: Number of tokens.
        size: Of the texts in bytes of UTF-8.
    """

    nll: float
    tokens: int
    size: int

    @property
    def per_token(self) -> float:
        """The mean loss in nats per token: comparable between runs over the same tokenizer."""
        return self.nll / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of text: comparable between tokenizers too."""
        return self.nll / self.size / math.log(2)


def general_text_loss(
    model: nn.Module,
    adapter: Adapter | None,
    tokenizer: Any,
    texts: Sequence[str] | None = None,
) -> TextLoss:
    """Return the loss of a model on general text, with its adapter or as the base alone.

    Each passage follows the token that begins a text (BOS, or EOS where there is none), so that all
    of its tokens are predicted. A long one is predicted in parts. No dropout is active, and no
    random number is drawn.

    Args:
        model: A causal LM of transformers, in training or eval mode.
        adapter: That is attached to ``model``; None for the base alone, which an attached adapter
            is taken out for.
        tokenizer: The model's.
        texts: The passages; by default those that come with the package, of ``general_texts()``.

    Raises:
        UserError: If the base cannot be had alone, as with full fine-tuning.
    """
    passages = general_texts() if texts is None else list(texts)
    most = min(LONGEST, _positions(model) - getattr(adapter, "num_virtual_tokens", 0))
    rows = [row for text in passages for row in passage_rows(tokenizer, text, most)]
    rows.sort(key=lambda row: len(row["input_ids"]))
    device = next(model.parameters()).device
    nll, tokens = 0.0, 0
    base = nullcontext() if adapter is not None else disable_adapter(model)
    with _evaluating(model), torch.no_grad(), base:
        loss = CausalLMLoss(model, adapter)
        for start in range(0, len(rows), ROWS):
            batch = padded_collate(rows[start : start + ROWS], rows[0]["input_ids"][0])
            of_batch, count, _ = loss.nll({name: t.to(device) for name, t in batch.items()})
            nll, tokens = nll + float(of_batch), tokens + int(count)
    return TextLoss(nll, tokens, sum(len(text.encode()) for text in passages))


def general_texts(file: str | Path | None = None) -> list[str]:
    """Return passages of general text.

    Args:
        file: ``.jsonl`` with a ``text`` in each row, or plain text with empty lines between
            passages; None for the passages of the package, which were written for it.

    Raises:
        UserError: If the file has none, or rows without a text.
    """
    if file is None:
        content = files("peft_lightning.data").joinpath(GENERAL_TEXT).read_text(encoding="utf-8")
        return [json.loads(line)["text"] for line in content.splitlines()]
    content = read_text(file)
    if Path(file).suffix == ".jsonl":
        texts = [_text_of(line, i, file) for i, line in enumerate(content.splitlines(), 1) if line]
    else:
        texts = [part.strip() for part in content.split("\n\n")]
    if not (found := [text for text in texts if text]):
        raise UserError(f"model.forgetting: there is no text in {file}")
    return found


def _text_of(line: str, number: int, file: str | Path) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f"model.forgetting: line {number} of {file} is no JSON object with a text under 'text'"
        )
    return text


def passage_rows(tokenizer: Any, text: str, most: int = LONGEST) -> list[dict[str, Any]]:
    """Return a passage as rows of at most ``most`` tokens, the first of which begins a text."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    starts = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    begin = next((i for i in starts if i is not None), 0)
    parts = [ids[i : i + most - 1] for i in range(0, len(ids), most - 1)]
    return [
        {"input_ids": np.array([begin, *part]), "labels": np.array([-100, *part])} for part in parts
    ]


def _positions(model: Any) -> int:
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or LONGEST


class _evaluating:  # noqa: N801  (a context)
    """Lets no part of a model be in training mode; leaves each as it was."""

    def __init__(self, model: nn.Module) -> None:
        self._training = [part for part in model.modules() if part.training]

    def __enter__(self) -> None:
        for part in self._training:
            part.training = False

    def __exit__(self, *args: object) -> None:
        for part in self._training:
            part.training = True
