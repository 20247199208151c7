"""``python -m peft_lightning generate``: answers to prompts, with or without an adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def generate(
    prompt: list[str] | str | None = None,
    file: str | None = None,
    output: str | None = None,
    ckpt: str | None = None,
    model: str | None = None,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    system: str | None = None,
    format: str = "auto",
    chat_template: str | None = None,
    batch_size: int = 32,
    dtype: str = "auto",
    device: str = "auto",
    any_base: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Answer prompts with a base model, an adapter on it, or a fully fine-tuned model.

    Args:
        prompt: A prompt, or several as a JSON list.
        file: Prompts from a file: a .txt file with one a line, or rows as for training, whose
            answers may be missing.
        output: JSONL file to write: each row with its answer as "generated". Without it, answers
            are printed.
        ckpt: Folder of an adapter or checkpoint; its base model is found by itself.
        model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        max_new_tokens: Most tokens of an answer.
        temperature: Of sampling; 0 takes the most probable token each time.
        top_p: Sample only from the most probable tokens that together have this probability.
        seed: Of sampling.
        system: System message for prompts that have none.
        format: Of the rows in the file: auto, a format's name, or a dotted path.
        chat_template: Path of a Jinja file, or "none" for plain text; without, the tokenizer's own.
        batch_size: Prompts answered at a time.
        dtype: Of the base's weights: auto (as saved), float32, bfloat16 or float16.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        any_base: Use the adapter even if it was trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either --prompt, a text, or --file, a file of prompts")
    if model is None and ckpt is None:
        raise ValueError("give --ckpt, an adapter's folder, or --model, a base model, or both")
    import torch

    from peft_lightning.adapters.atomic import atomic_text
    from peft_lightning.adapters.files import load_adapter
    from peft_lightning.base_model import base_fingerprint, load_base_model, load_tokenizer
    from peft_lightning.data.tokenization import end_token_ids
    from peft_lightning.generation import find_end_ids, generate_tokens

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if output is not None and Path(output).is_dir():
        raise ValueError(f"output {output} is a folder: give the name of a JSONL file")
    base_name, tokenizer_name, folder = _places(model, ckpt)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    tokenizer = load_tokenizer(tokenizer_name, **options)
    prompts = [prompt] if isinstance(prompt, str) else prompt
    records, rows = _encoded(prompts, file, tokenizer, format, system, chat_template)
    base = load_base_model(base_name, dtype=dtype, device=device, **options)
    adapter = None
    if folder is not None:
        found = base_fingerprint(base)
        adapter = load_adapter(base, folder, any_base=any_base, base_fingerprint=found)
    answers = generate_tokens(
        base,
        adapter,
        tokenizer,
        rows,
        max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        end_ids=find_end_ids(base, tokenizer) | end_token_ids(tokenizer, chat_template),
        progress=_progress(len(rows)) if len(rows) > batch_size else None,
    )
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]
    lines = [
        json.dumps({**record, "generated": text}, ensure_ascii=False) + "\n"
        for record, text in zip(records, texts, strict=True)
    ]
    if output is not None:
        atomic_text(output, "".join(lines))
        print(f"{len(lines)} answers: {output}")
    elif file is not None:
        print("".join(lines), end="")
    else:
        print("\n\n".join(texts))


def _places(model: str | None, ckpt: str | None) -> tuple[str, str, str | None]:
    """Return where the base model, the tokenizer and the adapter are.

    Raises:
        ValueError: If an adapter does not say what its base model is.
    """
    from peft_lightning.adapters.files import read_adapter
    from peft_lightning.adapters.full import Full

    if ckpt is None:
        assert model is not None
        return model, model, None
    adapter, _, facts = read_adapter(ckpt)
    name = model or facts["base_model"]
    if isinstance(adapter, Full):
        if model is not None:
            raise ValueError(f"{ckpt} is a whole model: give it without --model {model}")
        has_tokenizer = Path(ckpt, "tokenizer_config.json").is_file()
        return ckpt, ckpt if has_tokenizer or not name else name, None
    if not name:
        raise ValueError(f"{ckpt} does not name its base model: give it with --model")
    return name, name, ckpt


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
    from peft_lightning.data.conversations import Conversation, PlainText
    from peft_lightning.data.formats import detect_format, prompt_of
    from peft_lightning.data.sources import RowError, find_source
    from peft_lightning.data.tokenization import encode_prompt

    if file is not None and file.endswith(".txt"):
        prompts = [line for line in _lines(file) if line.strip()]
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
            row = prompt_of(record, format_name)
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


def _lines(file: str) -> list[str]:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}") from None


def _progress(total: int) -> Any:
    return lambda done: print(f"\r{done} of {total}", end="\n" * (done == total), file=sys.stderr)
