"""Answers to prompts by one or several adapters; an interrupted run continues where it stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from peft_lightning.data import assign_adapters
from peft_lightning.inference.generate import decode_answer
from peft_lightning.inference.load import InferenceModel
from peft_lightning.inference.partial_file import PartialAnswers, digests, run_hash
from peft_lightning.inference.prompts import Prompts
from peft_lightning.process.progress import Progress


@dataclass(frozen=True)
class Answer:
    """The answer to a prompt.

    Args:
        record: The row of the prompt.
        adapter: The adapter that answered; None where each prompt has one answer.
        text: The answer.
    """

    record: dict[str, Any]
    adapter: str | None
    text: str

    def as_json(self) -> str:
        """Return the row with its answer as "prediction", as one line of JSON."""
        adapter = {} if self.adapter is None else {"adapter": self.adapter}
        row = {**self.record, **adapter, "prediction": self.text}
        return json.dumps(row, ensure_ascii=False)


def answer_prompts(
    loaded: InferenceModel,
    prompts: Prompts,
    output: str | None = None,
    **options: Any,
) -> list[Answer]:
    """Answer each prompt with the adapter that its row names, or else with every adapter.

    Args:
        loaded: The base model and its adapters.
        prompts: The prompts.
        output: JSONL file to write. Until it is whole, the answers are in ``<output>.part``, from
            which the same call continues. None keeps nothing.
        **options: Those of ``generate_tokens``, ``max_new_tokens`` among them.

    Returns:
        The answers in the order of the prompts.

    Raises:
        UserError: If a row names an unknown adapter, or a prompt cannot be encoded.
    """
    tasks = assign_adapters(prompts.records, loaded.names)
    rows = {
        name: prompts.encode(loaded.tokenizers[name], loaded.prompt_formats[name])
        for name in dict.fromkeys(name for _, name in tasks)
    }
    facts: list[Any] = [rows, tasks, options, loaded.fingerprint, str(loaded.model.dtype)]
    facts += [loaded.quantization, *(digests(loaded.bank.tensors(name)) for name in loaded.names)]
    progress = Progress("answering", len(tasks), "prompts")
    with progress, PartialAnswers(output, run_hash(*facts), len(tasks)) as kept:
        for name in dict.fromkeys(name for _, name in tasks):
            own = [number for number, (_, adapter) in enumerate(tasks) if adapter == name]

            def keep(
                picked: list[int], ids: list[list[int]], own: list[int] = own, name: str = name
            ) -> None:
                tokenizer = loaded.tokenizers[name]
                texts = [decode_answer(tokenizer, answer) for answer in ids]
                kept.add({own[i]: text for i, text in zip(picked, texts, strict=True)})
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
            Answer(prompts.records[row], name if several else None, kept.texts[number])
            for number, (row, name) in enumerate(tasks)
        ]
        kept.finish(answer.as_json() for answer in answers)
    return answers
