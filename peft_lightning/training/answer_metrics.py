"""AnswerMetrics: greedy answers to validation and test rows, and their scores by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch.distributed.fsdp import FSDPModule

from peft_lightning.base_model.positions import positions_of
from peft_lightning.data.answer_rows import AnswerRow
from peft_lightning.data.tokens.tokenizer import padding_id
from peft_lightning.inference.answer_text import reference_text
from peft_lightning.inference.stop_tokens import stop_token_ids
from peft_lightning.messages import UserError
from peft_lightning.metrics import LIKELIHOOD
from peft_lightning.process.progress import Progress
from peft_lightning.training.answer_options import AnswerOptions, check_labels
from peft_lightning.training.label_likelihood import label_ids, label_log_likelihoods
from peft_lightning.training.scored_answers import ScoredAnswers

AT_ONCE = 32  # prompts of a batch
TRIAL_ROWS = 2  # of fast_dev_run


class AnswerMetrics(Callback):
    """Answers the rows of ``model.metrics`` at the end of each validation and test.

    Logs the score of each metric, of all rows and of those of each source, and the share of the
    most frequent answer; ``evaluation/val.jsonl`` and ``test.jsonl`` in the run's folder have each
    row with its answer and scores, of the last time. Several processes share the rows. The random
    state is left as it is.
    """

    def __init__(self) -> None:
        self._rows: list[AnswerRow] = []
        self._references: list[str] = []
        self._labels: dict[str, list[int]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._prepare(trainer, pl_module, "val")

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            self._prepare(trainer, pl_module, "val")

    def on_test_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._prepare(trainer, pl_module, "test")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._rows and not trainer.sanity_checking:
            self._evaluate(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self._rows:
            self._evaluate(trainer, pl_module, "test")

    def _prepare(self, trainer: Any, module: Any, split: str) -> None:
        """Read the rows, and find what cannot be done with them before anything is computed."""
        options, self._rows = getattr(module, "answer_options", AnswerOptions()), []
        if not options.metrics:
            return
        data = trainer.datamodule
        if not hasattr(data, "answer_rows"):
            raise UserError(
                "model.metrics need the rows of an SFTDataModule: give the trainer one, or leave "
                "model.metrics out"
            )
        rows = data.answer_rows(split, options.rows)
        if not rows:
            raise UserError(
                f"model.metrics are of {split} rows, and there are none: give data.{split}, or "
                "leave model.metrics out"
            )
        self._rows = rows[:TRIAL_ROWS] if trainer.fast_dev_run else rows
        ends = stop_token_ids(module.model, data.tokenizer)
        self._references = [reference_text(data.tokenizer, row.answer, ends) for row in self._rows]
        most = data.token_options.max_length
        if cut := sum(row.answer[-1] not in ends and row.length >= most for row in self._rows):
            rank_zero_info(
                f"model.metrics: the answers of {cut} of {len(self._rows)} rows are cut at "
                f"data.max_length {most}, and are compared as they are"
            )
        if options.of_texts:
            _check_room(module, self._rows)
        if options.of_labels:
            self._labels = self._find_labels(module, data.tokenizer)

    def _find_labels(self, module: Any, tokenizer: Any) -> dict[str, list[int]]:
        if isinstance(module, FSDPModule):
            raise UserError(f"{LIKELIHOOD} does not go with strategy fsdp2: use strategy ddp")
        references, given = self._references, module.answer_options.labels
        labels = given or tuple(dict.fromkeys(references))
        if given is None:
            check_labels(labels, f"{self._rows[0].file}, in the rows that are answered,")
        for row, reference in zip(self._rows, references, strict=True):
            if reference not in labels:
                raise UserError(
                    f"{row.location}: its answer {reference!r:.60} is none of model.labels, "
                    f"{', '.join(labels)!s:.200}"
                )
        answers = [row.answer for row in self._rows]
        ids = label_ids(tokenizer, labels, list(zip(references, answers, strict=True)))
        return dict(zip(labels, ids, strict=True))

    def _evaluate(self, trainer: Any, module: Any, stage: str) -> None:
        options = module.answer_options
        shared = trainer.world_size > 1 and not isinstance(module, FSDPModule)
        first, step = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
        own = list(range(first, len(self._rows), step))
        found = {i: dict[str, str]() for i in own}
        if options.of_texts:
            self._answer(module, found)
        if options.of_labels:
            self._classify(trainer, module, found)
        if shared:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, found)
            found = {i: row for part in parts for i, row in part.items()}
        answers = [found[i] for i in range(len(self._rows))]
        scored = ScoredAnswers(options, self._rows, self._references, answers)
        scored.log(module, stage)
        if trainer.is_global_zero and not trainer.fast_dev_run:
            file = Path(trainer.default_root_dir) / "evaluation" / f"{stage}.jsonl"
            scored.write(file, trainer.datamodule.tokenizer, trainer.global_step)

    def _answer(self, module: Any, found: dict[int, dict[str, str]]) -> None:
        order = sorted(found, key=lambda i: len(self._rows[i].prompt))
        with Progress("answering rows", len(order), "rows") as progress:
            for start in range(0, len(order), AT_ONCE):
                picked = order[start : start + AT_ONCE]

                def on_token(answers: float, done: int = start) -> None:
                    progress.update(int(done + answers))

                prompts = [self._rows[i].prompt for i in picked]
                limit = module.predict_max_new_tokens
                answers = module.generate(prompts, limit, on_token=on_token)
                for i, text in zip(picked, answers, strict=True):
                    found[i]["answer"] = text
                progress.update(start + len(picked))

    def _classify(self, trainer: Any, module: Any, found: dict[int, dict[str, str]]) -> None:
        names, ids = list(self._labels), list(self._labels.values())
        is_mean = module.answer_options.label_score == "mean"
        data = trainer.datamodule
        padded = data.batch_options.layout == "padded"
        with Progress("comparing labels", len(found), "rows") as progress:
            sums = label_log_likelihoods(
                module,
                [self._rows[i].prompt for i in found],
                ids,
                pad_id=padding_id(data.tokenizer) if padded else None,
                on_row=progress.update,
            )
        for i, of_row in zip(found, sums, strict=True):
            values = [
                value / (len(label) if is_mean else 1)
                for value, label in zip(of_row, ids, strict=True)
            ]
            found[i]["label"] = names[values.index(max(values))]


def _check_room(module: Any, rows: list[AnswerRow]) -> None:
    """Raise UserError if a prompt and its answer may exceed the model's positions."""
    positions = positions_of(module.model).number
    virtual = getattr(module.adapter, "num_virtual_tokens", 0)
    row = max(rows, key=lambda row: len(row.prompt))
    longest = len(row.prompt) + virtual
    if positions is not None and longest + module.predict_max_new_tokens > positions:
        raise UserError(
            f"{row.location}: its prompt has {longest} tokens, and with "
            f"model.predict_max_new_tokens {module.predict_max_new_tokens} its answer exceeds the "
            f"model's {positions} positions: set it to {max(1, positions - longest)} or less"
        )
