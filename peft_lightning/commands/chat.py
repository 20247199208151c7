"""``python -m peft_lightning chat``: a conversation in the terminal, with adapters to switch."""

from __future__ import annotations

import signal
import sys
from typing import Any

from peft_lightning.process.signals import STOP

HELP = """\
/adapter NAME  answer with another adapter    /base   answer without one
/reset         forget the conversation        /quit   end (Ctrl-D too)
Ctrl-C stops an answer."""


def chat(
    ckpt_path: str | None = None,
    base_model: str | None = None,
    adapter: list[str] | None = None,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat_template: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Talk with a base model and adapters on it; answers appear as they are made.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or a hub's OWNER/NAME@REVISION; its base
            model is found by itself.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        adapter: An adapter to switch to, FOLDER or NAME=FOLDER; may be given several times.
        system: System message of the conversation.
        max_new_tokens: Most tokens of an answer.
        temperature: Of sampling; 0 takes the most probable token each time.
        top_p: Sample only from the most probable tokens that together have this probability.
        seed: Of sampling.
        chat_template: Path of a Jinja file; without, the tokenizer's own.
        dtype: Of the base's weights: float32, bfloat16, float16, or auto: as saved if the processor
            multiplies that, else float32.
        quantization: 4bit or 8bit: the base's linear layers in so many bits, by bitsandbytes.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Use adapters even if they were trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
    """
    from transformers import TextStreamer

    from peft_lightning.data import Conversation, encode_prompt, end_token_ids, load_template
    from peft_lightning.inference.generate import find_end_ids, generate_tokens
    from peft_lightning.inference.load import load_inference_model

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
    if chat_template is not None:
        for each in loaded.tokenizers.values():
            each.chat_template = load_template(tokenizer, chat_template)
    if tokenizer.chat_template is None:
        raise ValueError(
            "a chat needs a chat template, and this tokenizer has none: give one with "
            "--chat_template, or continue plain text with the command generate"
        )
    bank.use(loaded.names[0])
    ends = find_end_ids(base, tokenizer) | end_token_ids(tokenizer, chat_template)
    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    print(f"{HELP}\nadapters: {', '.join(bank.names)}; now {bank.active}", file=sys.stderr)

    STOP.forget([signal.SIGINT])  # from here on it stops an answer

    def answer() -> str:
        own = loaded.tokenizers[bank.active]
        rows = [encode_prompt(own, Conversation(messages), chat_template)]
        [ids] = generate_tokens(
            base,
            bank.use(bank.active),
            own,
            rows,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + len(messages),
            end_ids=ends,
            streamer=TextStreamer(own, skip_prompt=True, skip_special_tokens=True),
        )
        return str(own.decode(ids, skip_special_tokens=True)).strip()

    while (text := _ask()) is not None:
        command, _, name = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            messages[:] = first
            print("the conversation is forgotten", file=sys.stderr)
        elif command in ("/base", "/adapter"):
            _switch(bank, "base" if command == "/base" else name.strip())
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif text:
            messages.append({"role": "user", "content": text})
            if (said := _unless_stopped(answer)) is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": said})


def _ask() -> str | None:
    """Return the next line, None at the end of the input."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (arrow keys and history, by being there)
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _switch(bank: Any, name: str) -> None:
    try:
        bank.use(name)
        print(f"now {bank.active}", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)


def _unless_stopped(answer: Any) -> str | None:
    """Return the answer; None if it was stopped, or the conversation has become too long."""
    try:
        return str(answer())
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    except ValueError as error:
        print(f"{error}; /reset starts anew", file=sys.stderr)
    return None
