"""Answers to prompts by one or several adapters; an interrupted run continues where it stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from peft_lightning.data import assign_adapters
from peft_lightning.inference.answer_text import decode_answer, is_cut
from peft_lightning.inference.load import InferenceModel
from peft_lightning.inference.partial_file import PartialAnswers, digests, run_hash
from peft_lightning.inference.prompts import Prompts
from peft_lightning.inference.truncation import TRUNCATIONS, fit_to_model
from peft_lightning.messages import check_choice
from peft_lightning.process.progress import Progress


@dataclass(frozen=True)
class Answer:
    """The answer to a prompt.

    Args:
        record: The row of the prompt.
        adapter: The adapter that answered; None where each prompt has one answer.
        text: The answer; None if the prompt is too long to have one.
    """

    record: dict[str, Any]
    adapter: str | None
    text: str | None

    def as_json(self) -> str:
        """Return the row with its answer as "prediction", as one line of JSON."""
        adapter = {} if self.adapter is None else {"adapter": self.adapter}
        row = {**self.record, **adapter, "prediction": self.text}
        return json.dumps(row, ensure_ascii=False)


def answer_prompts(
    loaded: InferenceModel,
    prompts: Prompts,
    output: str | None = None,
    truncation: str = "error",
    **options: Any,
) -> list[Answer]:
    """Answer each prompt with the adapter that its row names, or else with every adapter.

    Args:
        loaded: The base model and its adapters.
        prompts: The prompts.
        output: JSONL file to write. Until it is whole, the answers are in ``<output>.part``, from
            which the same call continues. None keeps nothing.
        truncation: Of prompts that are too long for the model: error, drop (they get no answer) or
            truncate (their beginning is cut off).
        **options: Those of ``generate_tokens``, ``max_new_tokens`` among them.

    Returns:
        The answers in the order of the prompts.

    Raises:
        UserError: If a row names an unknown adapter, or a prompt cannot be encoded or is too long.
    """
    check_choice("truncation", truncation, TRUNCATIONS)
    tasks = assign_adapters(prompts.records, loaded.names)
    rows = {
        name: prompts.encode(loaded.tokenizers[name], loaded.prompt_formats[name])
        for name in dict.fromkeys(name for _, name in tasks)
    }
    left_out = {
        (row, name)
        for name, ids in rows.items()
        for row in fit_to_model(
            loaded,
            name,
            ids,
            {r for r, n in tasks if n == name},
            options["max_new_tokens"],
            truncation,
        )
    }
    facts: list[Any] = [rows, tasks, options, loaded.fingerprint, str(loaded.model.dtype)]
    facts += [loaded.quantization, *(digests(loaded.bank.tensors(name)) for name in loaded.names)]
    stop = options.get("stop", ())
    progress = Progress("answering", len(tasks) - len(left_out), "prompts")
    with progress, PartialAnswers(output, run_hash(*facts), len(tasks)) as kept:
        for name in dict.fromkeys(name for _, name in tasks):
            own = [
                number
                for number, task in enumerate(tasks)
                if task[1] == name and task not in left_out
            ]

            def keep(
                picked: list[int], ids: list[list[int]], own: list[int] = own, name: str = name
            ) -> None:
                tokenizer = loaded.tokenizers[name]
                texts = [decode_answer(tokenizer, answer, stop) for answer in ids]
                most = options["max_new_tokens"]
                cut = [
                    own[i]
                    for i, a in zip(picked, ids, strict=True)
                    if is_cut(tokenizer, a, most, stop)
                ]
                kept.add({own[i]: text for i, text in zip(picked, texts, strict=True)}, cut)
                progress.update(len(kept.texts))

            loaded.generate(
                name,
                [rows[name][tasks[number][0]] for number in own],
                **options,
                skip=[i for i, number in enumerate(own) if number in kept.texts],
                on_answers=keep,
                on_token=lambda answers: progress.update(int(len(kept.texts) + answers)),
            )
        several = len(tasks) > len(prompts)
        answers = [
            Answer(prompts.records[row], name if several else None, kept.texts.get(number))
            for number, (row, name) in enumerate(tasks)
        ]
        kept.finish(answer.as_json() for answer in answers)
    if kept.cut:
        most = options["max_new_tokens"]
        said = f"{len(kept.cut)} of {len(tasks)} answers were cut at max_new_tokens {most}"
        print(said, file=sys.stderr)
    return answers
