"""``python -m peft_lightning generate``: answers to prompts, with or without an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def generate(
    prompt: list[str] | str | None = None,
    file: str | None = None,
    output: str | None = None,
    ckpt_path: str | None = None,
    base_model: str | None = None,
    adapter: list[str] | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    system: str | None = None,
    format: str = "auto",
    chat_template: str | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Answer prompts with a base model, an adapter on it, or a fully fine-tuned model.

    Args:
        prompt: A prompt, or several as a JSON list.
        file: Prompts from a file: a .txt file with one a line, or rows as for training, whose
            answers may be missing.
        output: JSONL file to write: each row with its answer as "prediction". Without it, answers
            are printed. What was cut off is in FILE.part and goes on with the same command.
        ckpt_path: Folder of an adapter or checkpoint, or a hub's OWNER/NAME@REVISION; its base
            model is found by itself.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        adapter: An adapter, FOLDER or NAME=FOLDER; may be given several times. A row's "adapter"
            says which one answers it ("base" for none); without, each of them does.
        max_new_tokens: Most tokens of an answer.
        temperature: Of sampling; 0 takes the most probable token each time.
        top_p: Sample only from the most probable tokens that together have this probability.
        seed: Of sampling.
        system: System message for prompts that have none.
        format: Of the rows in the file: auto, a format's name, or a dotted path.
        chat_template: Path of a Jinja file, or "none" for plain text; without, the tokenizer's own.
        batch_size: Prompts answered at a time.
        dtype: Of the base's weights: float32, bfloat16, float16, or auto: as saved if the processor
            multiplies that, else float32.
        quantization: 4bit or 8bit: the base's linear layers in so many bits, by bitsandbytes.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Use adapters even if they were trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either --prompt, a text, or --file, a file of prompts")
    from peft_lightning.data import assign_adapters, end_token_ids
    from peft_lightning.inference.generate import find_end_ids, generate_tokens
    from peft_lightning.inference.load import load_inference_model
    from peft_lightning.inference.partial_file import PartialAnswers, digests, run_hash
    from peft_lightning.process.progress import Progress

    if output is not None and Path(output).is_dir():
        raise ValueError(f"output {output} is a folder: give the name of a JSONL file")
    loaded = load_inference_model(
        base_model,
        [*([ckpt_path] if ckpt_path else []), *(adapter or [])],
        dtype=dtype,
        device=device,
        allow_base_mismatch=allow_base_mismatch,
        trust_remote_code=trust_remote_code,
        revision=revision,
        quantization=quantization,
    )
    base, tokenizer, bank = loaded.model, loaded.tokenizer, loaded.bank
    prompts = [prompt] if isinstance(prompt, str) else prompt
    records, rows = _encoded(prompts, file, tokenizer, format, system, chat_template)
    rows_of = {
        name: rows
        if own is tokenizer
        else _encoded(prompts, file, own, format, system, chat_template)[1]
        for name, own in loaded.tokenizers.items()
    }
    tasks = assign_adapters(records, loaded.names)
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "end_ids": sorted(find_end_ids(base, tokenizer) | end_token_ids(tokenizer, chat_template)),
    }
    what = [rows_of, tasks, options, loaded.fingerprint, str(base.dtype), quantization]
    what += [digests(bank.tensors(name)) for name in loaded.names]
    answering = Progress("answering", len(tasks), "prompts")
    with answering, PartialAnswers(output, run_hash(*what), len(tasks)) as answers:
        for name in dict.fromkeys(name for _, name in tasks):
            mine = [k for k, (_, by) in enumerate(tasks) if by == name]

            def keep(
                done: list[int], found: list[list[int]], mine: list[int] = mine, by: str = name
            ) -> None:
                texts = loaded.tokenizers[by].batch_decode(found, skip_special_tokens=True)
                answers.add({mine[i]: t.strip() for i, t in zip(done, texts, strict=True)})
                answering.update(len(answers.texts))

            generate_tokens(
                base,
                bank.use(name),
                tokenizer,
                [rows_of[name][tasks[k][0]] for k in mine],
                **options,
                skip=[i for i, k in enumerate(mine) if k in answers.texts],
                on_answers=keep,
            )
        texts = [answers.texts[k] for k in range(len(tasks))]
        names = [name for _, name in tasks] if len(tasks) > len(records) else None
        lines = [
            json.dumps(
                {**records[row], **({"adapter": name} if names else {}), "prediction": text},
                ensure_ascii=False,
            )
            for (row, name), text in zip(tasks, texts, strict=True)
        ]
        answers.finish(lines)
    if output is not None:
        print(f"{len(lines)} answers: {output}")
    elif file is not None:
        print("\n".join(lines))
    elif names is not None:
        print("\n\n".join(f"[{n}] {t}" for n, t in zip(names, texts, strict=True)))
    else:
        print("\n\n".join(texts))


def _encoded(
    prompts: list[str] | None,
    file: str | None,
    tokenizer: Any,
    format_name: str,
    system: str | None,
    chat_template: str | None,
) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Return the prompts' records and token ids.

    Raises:
        ValueError: If there are none, or a row is malformed; names its line.
    """
    from peft_lightning.commands.merge import read_text
    from peft_lightning.data import (
        Conversation,
        PlainText,
        RowError,
        detect_format,
        encode_prompt,
        find_source,
        prompt_from_record,
    )

    if file is not None and file.endswith(".txt"):
        prompts = [line for line in read_text(file).splitlines() if line.strip()]
    if prompts is not None:
        found: Any = (({"prompt": p}, f"prompt {i}") for i, p in enumerate(prompts, start=1))
        format_name = "prompt_completion"
    else:
        assert file is not None
        found = find_source(file).records()
    records, rows = [], []
    for record, where in found:
        try:
            if isinstance(record, RowError):
                raise record
            if format_name == "auto":
                format_name = detect_format(list(record), str(file), prompts_only=True)
            row = prompt_from_record(record, format_name)
            if system is not None:
                if isinstance(row, PlainText):
                    raise RowError("a system message", "this row is plain text, not a conversation")
                if row.messages[0]["role"] != "system":
                    first = {"role": "system", "content": system}
                    row = Conversation([first, *row.messages], row.tools)
            rows.append(encode_prompt(tokenizer, row, chat_template))
        except RowError as error:
            raise ValueError(f"{where}: {error}") from error
        records.append(record)
    if not rows:
        raise ValueError(f"there is no prompt in {file or '--prompt'}")
    return records, rows
