"""``python -m peft_lightning chat``: a conversation in the terminal, with several adapters."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from peft_lightning.process.signals import STOP

if TYPE_CHECKING:
    from peft_lightning.inference.chat_session import ChatSession

HELP = """\
/adapter NAME  answer with another adapter    /base   answer without one
/reset         forget the conversations       /quit   end (Ctrl-D too)
Ctrl-C stops an answer. Each adapter has its own conversation, and so has the base."""


def chat(
    ckpt_path: str | None = None,
    base_model: str | None = None,
    adapter: list[str] | None = None,
    tokenizer: str | None = None,
    system: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: list[str] | None = None,
    prompt_template: str | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    template_date: str | None = None,
    special_tokens_in_text: str | None = None,
    dtype: str = "auto",
    quantization: str | None = None,
    device: str = "auto",
    allow_base_mismatch: bool = False,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> None:
    """Chat with a base model and adapters on it; answers are printed as they are generated.

    Args:
        ckpt_path: Folder of an adapter or checkpoint, or OWNER/NAME@REVISION on the hub; it names
            its base model.
        base_model: Base model, if not the one that the adapter names: hub id, folder or GGUF file.
        adapter: An adapter to switch to, FOLDER or NAME=FOLDER; may be given several times.
        tokenizer: Hub id or folder of the tokenizer; without, the one in the adapter's folder, else
            that of the base.
        system: System message of the conversation; without, the one of the training.
        max_new_tokens: Largest number of tokens of an answer.
        temperature: Sampling temperature; 0 takes the most probable token each time.
        top_p: Sample only from the most probable tokens whose probabilities sum up to this.
        seed: Seed of the samples.
        stop: A string that ends an answer, and is not in it; may be given several times.
        prompt_template: What a message fills, "Question: {question}"; "" for nothing; without,
            the one of the training.
        chat_template: Path of a Jinja file; without, the one of the training.
        chat_template_kwargs: Variables of the chat template, beside those of the training.
        template_date: Date, YYYY-MM-DD, that a chat template prints as today's, or today; without,
            the one of the training.
        special_tokens_in_text: Special tokens in messages: encode (as text), keep or error;
            without, as in training.
        dtype: Data type of the base's weights: float32, bfloat16, float16, or auto: as saved if the
            processor multiplies that, else float32.
        quantization: 4bit or 8bit: quantize the base's linear layers with bitsandbytes.
        device: auto (the GPU if there is one), cpu, cuda, cuda:1 ...
        allow_base_mismatch: Use adapters even if they were trained on another base model.
        trust_remote_code: Whether code that comes with the model may run.
        revision: Branch, tag or commit of a hub id.
    """
    from peft_lightning.inference.chat_session import ChatSession
    from peft_lightning.inference.load import load_inference_model, named_folders
    from peft_lightning.inference.prompt_formats import formats_of, say_formats

    given = {
        "tokenizer": tokenizer,
        "system_prompt": system,
        "prompt": prompt_template,
        "chat_template": chat_template,
        "chat_template_kwargs": chat_template_kwargs,
        "template_date": template_date,
        "special_tokens_in_text": special_tokens_in_text,
    }
    folders = named_folders(adapter, ckpt_path)
    formats = formats_of(folders, given)
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
    session = ChatSession(loaded, max_new_tokens, temperature, top_p, seed, stop or ())
    say_formats(formats)
    names = ", ".join(loaded.bank.names)
    print(f"{HELP}\nadapters: {names}; now {session.adapter}", file=sys.stderr)
    STOP.forget([signal.SIGINT])  # from here on Ctrl-C stops an answer, not the command
    while (text := _ask()) is not None:
        command, _, name = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            session.reset()
            print("the conversations are forgotten", file=sys.stderr)
        elif command in ("/base", "/adapter"):
            _switch(session, "base" if command == "/base" else name.strip())
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif text:
            _answer(session, text)


def _ask() -> str | None:
    """Return the next line of the input; None at its end."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (importing it gives input() arrow keys and history)
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None


def _switch(session: ChatSession, name: str) -> None:
    try:
        session.use(name)
        so_far = len(session.messages)
        begun = f"goes on after {so_far} messages" if so_far else "begins"
        print(f"now {session.adapter}, whose conversation {begun}", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)


def _answer(session: ChatSession, text: str) -> None:
    """Answer a message, which prints the answer, unless it is too long or Ctrl-C is pressed."""
    try:
        session.answer(text)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    except ValueError as error:
        print(f"{error}; /reset starts anew", file=sys.stderr)
