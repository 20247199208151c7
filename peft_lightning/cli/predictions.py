"""The answers of ``predict``: saved after each batch, and written to one file at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft_lightning.data import assign_adapters
from peft_lightning.data.datamodule import SFTDataModule
from peft_lightning.inference.partial_file import PartialAnswers, digests, run_hash
from peft_lightning.module import CausalLMModule


class KeptPredictions:
    """Lets an interrupted ``predict`` continue after the batches that it has answered.

    Args:
        module: Its ``predict_step`` is wrapped, to skip batches that have an answer.
        datamodule: It has the rows after its ``setup``.
        path: The file to write.
    """

    def __init__(self, module: CausalLMModule, datamodule: SFTDataModule, path: Path) -> None:
        self._module, self._datamodule, self._path = module, datamodule, path
        self._answer = module.predict_step
        self._answers: PartialAnswers | None = None
        self._numbers: dict[tuple[int, Any], int] = {}
        module.predict_step = self._step  # type: ignore[method-assign]

    def _step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        if self._answers is None:
            self._answers = self._open()
        numbers = [self._numbers[index, batch["adapter"]] for index in batch["index"]]
        known = self._answers.texts
        if not all(number in known for number in numbers):
            rows = self._answer(batch, batch_idx)
            texts = {number: row["text"] for number, row in zip(numbers, rows, strict=True)}
            self._answers.add(texts)
            return rows
        by = {"adapter": batch["adapter"]} if self._module.bank is not None else {}
        pairs = zip(batch["index"], numbers, strict=True)
        return [{"index": index, "text": known[number], **by} for index, number in pairs]

    def _open(self) -> PartialAnswers:
        """Return earlier answers, if they have the same rows, weights and options."""
        module, data = self._module, self._datamodule
        tasks = assign_adapters(data.predict_records, data.predict_adapters)
        self._numbers = {task: number for number, task in enumerate(tasks)}
        size = data.batch_options.val_batch_size or data.batch_options.batch_size
        what = [
            data.predict_prompts,
            tasks,
            size,
            [module.predict_max_new_tokens, module.stop],
            module.fingerprint,
        ]
        what += [str(module.model.dtype), module.quantization, str(module.trainer.precision)]
        if module.bank is None:
            what.append(digests(module.state_dict()))
        else:
            what += [digests(module.bank.tensors(name)) for name in data.predict_adapters or []]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return PartialAnswers(self._path, run_hash(*what), len(tasks)).open()

    def finish(self, answers: list[dict[str, Any]], scores: list[dict[str, float]]) -> None:
        """Write each row with its answer and its scores, in the order of ``answers``.

        Args:
            answers: As ``predict_step`` returns them.
            scores: By metric, as many; empty for a row without an answer to compare with.
        """
        lines = []
        for answer, of_answer in zip(answers, scores, strict=True):
            by = {"adapter": answer["adapter"]} if "adapter" in answer else {}
            row = self._datamodule.predict_records[answer["index"]] | by
            row["prediction"] = answer["text"]
            if of_answer:
                row["prediction_scores"] = of_answer
            lines.append(json.dumps(row, ensure_ascii=False, default=str))
        if self._answers is None:
            self._answers = self._open()
        self._answers.finish(lines)
        self._answers.close()
