"""The validation rows of runs as tokens: read once for all runs that have the same."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peft_lightning.adapters.folder import read_adapter_config
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.data import PromptFormat, set_template
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.files import sha256_of_json
from peft_lightning.inference.answer_text import decode_answer
from peft_lightning.messages import UserError
from peft_lightning.training.construct import accepted, arguments_from

IGNORED = -100
NOT_OF_THE_ROWS = {  # options of the data that change no validation row
    *("batch_size", "tokens_per_batch", "val_batch_size", "shuffle", "seed", "num_workers"),
    *("cache_dir", "allow_changed_data", "mix", "stopping_strategy", "test", "predict"),
}


@dataclass(frozen=True)
class ValidationRows:
    """Rows to evaluate on.

    A row of a file is one of them, also if it became several sequences of tokens.

    Args:
        name: The files, for messages.
        sequences: ``input_ids``, ``labels`` and ``loss_weights`` of each, (n,) arrays. No first
            token is labelled: only methods with virtual tokens predict it, and all are compared on
            the same tokens.
        rows: (sequences,) The row that each is of, counted from 0.
        prompts: For each row the token ids before its last answer; None if it has no prompt, as
            plain text.
        references: For each row the text of its last answer.
        tokenizer: The tokenizer of the rows.
        prompt_format: How their prompts are made.
        layout: flat or padded, as the runs were trained.
    """

    name: str
    sequences: list[dict[str, NDArray[Any]]]
    rows: NDArray[np.int64]
    prompts: list[list[int] | None]
    references: list[str]
    tokenizer: Any
    prompt_format: PromptFormat
    layout: str = "flat"

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def hash(self) -> str:
        """A hash of the tokens and their weights: what a loss per token can be compared on."""
        arrays = [[s["input_ids"].tolist(), s["loss_weights"].tolist()] for s in self.sequences]
        return sha256_of_json([arrays, self.rows.tolist(), self.layout])

    def prompt_text(self, row: int) -> str:
        """Return the prompt of a row as it is written for the model."""
        return str(self.tokenizer.decode(self.prompts[row] or []))


class RowReader:
    """Reads the validation rows of runs, those of equal options once.

    Args:
        val: A file in place of the runs' own; None for those.
        most: Largest number of rows; None for all.
        trust_remote_code: Whether code that comes with a tokenizer may run.
    """

    def __init__(
        self, val: str | None = None, most: int | None = None, trust_remote_code: bool = False
    ) -> None:
        self.val, self.most, self.trust_remote_code = val, most, trust_remote_code
        self._read: dict[str, ValidationRows] = {}

    def read(self, run: Run) -> ValidationRows:
        """Return the validation rows of a run.

        Raises:
            UserError: If it has none, they cannot be read, or are not of files.
        """
        assert run.checkpoint is not None
        options = run.section("data")
        if self.val is not None:
            options["val"] = self.val
        adapter = read_adapter_config(run.checkpoint)[0]
        key = sha256_of_json(
            [
                {k: v for k, v in options.items() if k not in NOT_OF_THE_ROWS},
                (run.options.get("data") or {}).get("class_path"),
                [run.base_model, adapter.metadata().get("new_tokens")],
            ]
        )
        if key not in self._read:
            self._read[key] = self._rows(run, options, adapter)
        return self._read[key]

    def _rows(self, run: Run, options: Mapping[str, Any], adapter: Any) -> ValidationRows:
        assert run.checkpoint is not None  # which has the tokenizer and the source of the template
        tokenizer = adapter_tokenizer(
            run.base_model, run.checkpoint, trust_remote_code=self.trust_remote_code
        )
        trained = PromptFormat.of_folder(run.facts, run.checkpoint).chat_template
        set_template(tokenizer, trained)
        options = {**options, "chat_template": trained}
        adapter.with_tokenizer(tokenizer)
        kind = _class_of((run.options.get("data") or {}).get("class_path"))
        try:
            data = kind(**{**arguments_from(kind, options, ()), "tokenizer": tokenizer})
            data.setup("validate")
        except (UserError, FileNotFoundError) as error:
            raise UserError(
                f"the validation rows of {run.name} cannot be read: {error}. Start compare where "
                "the run was started, or give other rows with --val FILE"
            ) from None
        split = data._splits["val"]
        found = split.rows
        records = split.records[found]
        if self.most is not None:
            found = found[np.isin(records, np.unique(records)[: self.most])]
            records = split.records[found]
        sequences = [_without_first(split.dataset[int(i)]) for i in found]
        rows = np.unique(records, return_inverse=True)[1]
        prompts, references = _questions(sequences, rows, tokenizer)
        layout = data.batch_options.layout
        return ValidationRows(
            ", ".join(split.names),
            sequences,
            rows,
            prompts,
            references,
            tokenizer,
            data.prompt_format or PromptFormat(),
            layout,
        )


def _class_of(path: str | None) -> type[SFTDataModule]:
    """Return the class of a run's data module.

    Raises:
        UserError: If it cannot be imported, or reads rows in a way of its own.
    """
    if path is None or path.rpartition(".")[2] == SFTDataModule.__name__:
        return SFTDataModule
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, SFTDataModule)):
        raise UserError(
            f"the data module {path} is no SFTDataModule that can be imported here: "
            "give the rows with --val FILE"
        )
    assert accepted(kind)
    return kind


def _without_first(row: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a row without a label on its first token."""
    labels, weights = row["labels"].copy(), row["loss_weights"].copy()
    labels[:1], weights[:1] = IGNORED, 0
    return {"input_ids": row["input_ids"], "labels": labels, "loss_weights": weights}


def _questions(
    sequences: Sequence[Mapping[str, NDArray[Any]]], rows: NDArray[np.int64], tokenizer: Any
) -> tuple[list[list[int] | None], list[str]]:
    """Return the prompt before the last answer of each row, and that answer."""
    last = {int(row): sequence for row, sequence in zip(rows, sequences, strict=True)}
    prompts: list[list[int] | None] = []
    references = []
    for _, sequence in sorted(last.items()):
        ids, labelled = sequence["input_ids"], sequence["labels"] != IGNORED
        ends = np.flatnonzero(labelled)
        end = int(ends[-1]) + 1 if len(ends) else len(ids)
        before = np.flatnonzero(~labelled[:end])
        start = int(before[-1]) + 1 if len(before) else 0
        has_prompt = start > 1 and len(ends) > 0  # the first token of a text is never labelled
        prompts.append(ids[:start].tolist() if has_prompt else None)
        references.append(decode_answer(tokenizer, ids[start:end].tolist()))
    return prompts, references
