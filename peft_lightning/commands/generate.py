"""``python -m peft_lightning generate``: answers to prompts, with or without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft_lightning.messages import UserError, check_choice


def generate(
    prompt: list[str] | str | None = None,
    file: str | None = None,
    output: str | None = None,
    ckpt_path: str | None = None,
    base_model: str | None = None,
    adapter: list[str] | None = None,
    tokenizer: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    truncation: str = "error",
    system: str | None = None,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    roles: dict[str, str] | None = None,
    prompt_template: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    template_date: str | None = None,
    special_tokens_in_text: str | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> None:
    """Answer prompts with a base model, an adapter on it, or a fully fine-tuned model.

    Args:
        prompt: A prompt, or several as a JSON list.
        file: File of prompts: a .txt file with one per line, or rows as for training, in which the
            answers may be missing.
        output: JSONL file to write: each row with its answer as "prediction". Without it, the
            answers are printed. An interrupted run keeps its answers in FILE.part, and the same
            command continues from them.
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub; it names
            its base model.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        adapter: An adapter, FOLDER or NAME=FOLDER; may be given several times. The "adapter" of a
            row names the one that answers it ("base" for none); without, every adapter does.
        tokenizer: Hub id or folder of the tokenizer; without, the one in the adapter's folder, else
            that of the base.
        max_new_tokens: Largest number of tokens of an answer.
        temperature: Sampling temperature; 0 takes the most probable token each time.
        top_p: Sample only from the most probable tokens whose probabilities sum up to this.
        seed: Seed of the samples.
        stop: A string that ends an answer, and is not in it; may be given several times.
        truncation: Of prompts that leave no room for an answer: error (before any is answered),
            drop (counted; their prediction is null) or truncate (their beginning is cut off).
        system: System message for prompts that have none; without, the one of the training.
        format: Format of the rows in the file: auto, a format's name, or a dotted path.
        columns: Columns of the format, each with the column of the file that stands for it.
        roles: Names of roles in the file, each with the role that is meant.
        prompt_template: A prompt with columns of the file in braces: "Question: {question}", or
            with one for the text of --prompt; "" for none; without, the one of the training.
        chat_template: Path of a Jinja file, or "none" for plain text; without, the one of the
            training.
        chat_template_kwargs: Variables of the chat template, beside those of the training.
        template_date: Date, YYYY-MM-DD, that a chat template prints as today's, or today; without,
            the one of the training.
        special_tokens_in_text: Special tokens in prompts: encode (as text), keep or error; without,
            as in training.
        batch_size: Number of prompts in a batch.
        dtype: Data type of the base's weights: float32, bfloat16, float16, or auto: as saved if the
            processor multiplies that, else float32.
        quantization: 4bit or 8bit: quantize the base's linear layers with bitsandbytes.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Use adapters even if they were trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
        overwrite: Replace the file of answers that is there.
    """
    if (prompt is None) == (file is None):
        raise UserError("give either --prompt, a text, or --file, a file of prompts")
    from peft_lightning.base_model.load import find_device, require_dtype
    from peft_lightning.base_model.quantization import require_quantization
    from peft_lightning.data import RowOptions
    from peft_lightning.files import ANSWERS, require_output
    from peft_lightning.inference.answer_text import require_stop_strings
    from peft_lightning.inference.answers import answer_prompts
    from peft_lightning.inference.limits import check_options
    from peft_lightning.inference.load import load_inference_model, named_folders
    from peft_lightning.inference.prompt_formats import formats_of, say_formats
    from peft_lightning.inference.prompts import read_prompts
    from peft_lightning.inference.truncation import TRUNCATIONS

    check_options(max_new_tokens, batch_size, temperature, top_p, seed)
    check_choice("truncation", truncation, TRUNCATIONS)
    require_stop_strings(stop or ())
    require_dtype(dtype)
    require_quantization(quantization)
    device = find_device(device)
    if output is not None and Path(output).is_dir():
        raise UserError(f"output {output} is a folder: give the name of a JSONL file")
    folders = named_folders(adapter, ckpt_path)
    if output is not None:
        inputs = [file, base_model, tokenizer, chat_template, *folders.values()]
        require_output(output, ANSWERS, inputs, overwrite)
    texts = [prompt] if isinstance(prompt, str) else prompt
    options = RowOptions(format, columns=columns or {}, roles=roles or {}, prompt=prompt_template)
    given = {
        "tokenizer": tokenizer,
        "system_prompt": system,
        "prompt": prompt_template,
        "chat_template": chat_template,
        "chat_template_kwargs": chat_template_kwargs,
        "template_date": template_date,
        "special_tokens_in_text": special_tokens_in_text,
    }
    formats = formats_of(folders, given)
    prompts = read_prompts(texts, file, options)
    for prompt_format in formats.values():  # before the model, as its errors are quick
        prompts.rows(prompt_format)
    loaded = load_inference_model(
        base_model,
        folders,
        prompt_formats=formats,
        dtype=dtype,
        device=device,
        allow_base_mismatch=allow_base_mismatch,
        trust_remote_code=trust_remote_code,
        revision=revision,
        quantization=quantization,
    )
    say_formats(formats, prompts)
    answers = answer_prompts(
        loaded,
        prompts,
        output,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        truncation=truncation,
    )
    if output is not None:
        print(f"{len(answers)} answers: {output}")
    elif file is not None:
        print("\n".join(answer.as_json() for answer in answers))
    else:
        texts = ["" if answer.text is None else answer.text for answer in answers]
        by = [f"[{answer.adapter}] " if answer.adapter else "" for answer in answers]
        print("\n\n".join(map("".join, zip(by, texts, strict=True))))
