"""Evaluates the base and the checkpoints of runs row by row; what was evaluated is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from peft_lightning.experiments.compare.evaluated_model import (
    EvaluatedBase,
    EvaluationOptions,
    is_whole,
    whole_model,
)
from peft_lightning.experiments.compare.evaluation_cache import keep, kept, losses_of, result_of
from peft_lightning.experiments.compare.evaluation_tasks import Evaluated, Task
from peft_lightning.experiments.compare.general_rows import general_rows
from peft_lightning.experiments.compare.questions import Questions
from peft_lightning.experiments.compare.row_losses import RowLosses, row_losses
from peft_lightning.experiments.compare.runs import Run
from peft_lightning.experiments.compare.validation_rows import ValidationRows
from peft_lightning.files import sha256_of_json
from peft_lightning.inference.answer_text import decode_answer
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from peft_lightning.process.progress import Progress
from peft_lightning.training.general_text import general_texts


class Evaluation:
    """Evaluates the base and runs that have the same base and the same rows.

    Args:
        runs: The runs, each with a checkpoint, on one base.
        rows: The validation rows of each run by its name, all of one hash.
        questions: What every model answers.
        options: How.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        rows: dict[str, ValidationRows],
        questions: Questions,
        options: EvaluationOptions,
    ) -> None:
        self.runs, self.questions, self.options = list(runs), questions, options
        self.precision, first = options.precision_for(self.runs), self.runs[0]
        folders = tuple(run.record.folder for run in self.runs)
        base = str(first.facts.get("base_fingerprint") or first.base_model)
        self.tasks = [
            Task(None, rows[first.name], folders, f"base {base}"),
            *(Task(r, rows[r.name], (r.record.folder,), r.checksum) for r in self.runs),
        ]
        [self._rows_hash] = {rows[run.name].hash for run in self.runs}
        self.done: dict[str | None, Evaluated] = {}

    def run(self) -> dict[str | None, Evaluated]:
        """Return what the base, None, and each run by its name make of the rows."""
        for task in self.tasks:
            self._store(task, Evaluated(*self._kept(task)))
        missing = [task for task in self.tasks if self._lacks(task)]
        whole = [task for task in missing if task.run is not None and is_whole(task.run)]
        if on_base := [task for task in missing if task not in whole]:
            base = EvaluatedBase(self.runs, self.options, self.precision)
            self._evaluate(on_base, lambda task, _: (base.model, *base.use(task.run)))
        if whole:
            options = self.options
            self._evaluate(whole, lambda t, s: s.enter_context(whole_model(t.run, options)))
        return self.done

    def _evaluate(self, tasks: list[Task], model_of: Callable[[Task, ExitStack], Any]) -> None:
        """Compute the losses of all tasks, then the answers of all: each with its time left."""
        without = [task for task in tasks if self._lacks_losses(task)]
        total = sum(len(task.rows.sequences) for task in without)
        with Progress("evaluating", total, "rows") as progress:
            for task in without:
                self._guarded(task, model_of, self._losses, progress)
        open_ = [t for t in tasks if not self._of(t).problem and self._lacks(t)]
        with Progress("answering", len(open_) * len(self.questions), "prompts") as progress:
            for task in open_:
                self._guarded(task, model_of, self._answers, progress)

    def _guarded(
        self,
        task: Task,
        model_of: Callable[[Task, ExitStack], Any],
        work: Callable[..., Evaluated],
        progress: Progress,
    ) -> None:
        """Do a part of a task; what is wrong with one run stops no other."""
        try:
            with ExitStack() as stack:
                model, adapter, loss = model_of(task, stack)
                self._store(task, work(task, model, adapter, loss, progress))
        except (UserError, FileNotFoundError) as error:
            if task.run is None:
                raise
            self._store(task, replace(self._of(task), problem=str(error)))

    def _losses(
        self, task: Task, model: Any, adapter: Any, loss: CausalLMLoss, progress: Progress
    ) -> Evaluated:
        before, found = progress.done, self._of(task)
        if found.losses is None:
            losses = row_losses(
                loss, task.rows, self.precision, lambda done: progress.update(before + done)
            )
            keep(task.folders, self._facts(task, "rows"), result_of(losses))
            found = replace(found, losses=losses)
        if self.options.forgetting and found.general is None:
            rows = general_rows(task.rows.tokenizer, task.rows.layout, _positions(model, adapter))
            general = row_losses(loss, rows, self.precision)
            keep(task.folders, self._facts(task, "general"), result_of(general))
            found = replace(found, general=general)
        return found

    def _answers(
        self, task: Task, model: Any, adapter: Any, loss: CausalLMLoss, progress: Progress
    ) -> Evaluated:
        before, tokenizer, answered = progress.done, task.rows.tokenizer, [0]

        def on_answers(picked: list[int], _: list[list[int]]) -> None:
            answered[0] += len(picked)
            progress.update(before + answered[0])

        ids = generate_tokens(
            model,
            adapter,
            tokenizer,
            self.questions.tokens(tokenizer, task.rows.prompt_format),
            self.options.max_new_tokens,
            batch_size=self.options.batch_size,
            on_answers=on_answers,
            on_token=lambda answers: progress.update(before + answered[0] + answers),
        )
        answers = tuple(decode_answer(tokenizer, answer) for answer in ids)
        progress.update(before + len(self.questions))
        keep(task.folders, self._facts(task, "answers"), {"answers": list(answers)})
        return replace(self._of(task), answers=answers)

    def _kept(self, task: Task) -> tuple[RowLosses | None, tuple[str, ...], RowLosses | None]:
        losses, answers, general = (
            kept(task.folders, self._facts(task, what)) if is_asked else None
            for what, is_asked in (
                ("rows", True),
                ("answers", len(self.questions) > 0),
                ("general", self.options.forgetting),
            )
        )
        return (
            losses_of(losses) if losses else None,
            tuple(answers["answers"]) if answers else (),
            losses_of(general) if general else None,
        )

    def _facts(self, task: Task, what: str) -> dict[str, Any]:
        """Return everything that a result depends on."""
        model = self.runs[0].section("model")
        facts = {
            "what": what,
            "checkpoint": task.checkpoint,
            "precision": self.precision,
            "device": self.options.device,
            **{name: model.get(name) for name in ("dtype", "quantization", "attn_implementation")},
        }
        if what == "general":
            return {**facts, "layout": task.rows.layout, "texts": sha256_of_json(general_texts())}
        if what == "rows":
            return {**facts, "rows": self._rows_hash}
        limit = self.options.max_new_tokens
        shaped = str(task.rows.prompt_format) if self.questions.prompts else ""
        return {**facts, "questions": self.questions.hash, "most": limit, "prompts": shaped}

    def _lacks(self, task: Task) -> bool:
        return self._lacks_losses(task) or len(self._of(task).answers) < len(self.questions)

    def _lacks_losses(self, task: Task) -> bool:
        found = self._of(task)
        return found.losses is None or (self.options.forgetting and found.general is None)

    def _of(self, task: Task) -> Evaluated:
        return self.done[task.name]

    def _store(self, task: Task, evaluated: Evaluated) -> None:
        self.done[task.name] = evaluated


def _positions(model: Any, adapter: Any) -> int | None:
    """Return how many tokens of text a model has positions for; None if it does not say."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if most is None else most - getattr(adapter, "num_virtual_tokens", 0)
