"""A Modelfile for Ollama beside a GGUF file: template, stop words and system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft_lightning.data import PromptFormat
from peft_lightning.export.answering import Answering
from peft_lightning.export.chat_turns import Turns, find_turns
from peft_lightning.files import Kind, atomic_text, marked_file
from peft_lightning.messages import UserError

_FIRST_LINE = "# ollama create NAME -f THIS_FILE"
MODELFILE = Kind("Modelfile", marked_file(_FIRST_LINE))


def modelfile_of(out: str | Path) -> Path:
    """Return the path of the Modelfile of a GGUF file."""
    return Path(out).with_suffix(".Modelfile")


def modelfile(
    file: str,
    turns: Turns | None,
    reason: str | None,
    stops: Sequence[str],
    prompts: PromptFormat,
    is_adapter: bool,
) -> str:
    """Return the Modelfile of a GGUF file.

    Args:
        file: Name of the GGUF file, which is in the same folder.
        turns: Of the chat template; None for plain text, or with ``reason``.
        reason: Why the chat template could not be converted.
        stops: The tokens that end an answer.
        prompts: Of the training rows.
        is_adapter: Whether the file is a LoRA, and not a whole model.
    """
    lines = [_FIRST_LINE, f"FROM ./{file}"]
    if is_adapter:
        lines = [lines[0], "# the base as a GGUF file", "FROM ./BASE.gguf", f"ADAPTER ./{file}"]
    if reason is not None:
        lines.append(f"# no TEMPLATE, as the chat template cannot be one of Ollama's: {reason}")
    else:
        lines.append(f'TEMPLATE """{turns.as_go() if turns else "{{ .Prompt }}"}"""')
        if turns and turns.before_system is None:
            lines.append(
                "# the chat template takes no system message, or not in front of all others"
            )
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    if (system := prompts.system_prompt) is not None:
        lines.append(f'SYSTEM """{system}"""')
    return "\n".join(lines) + "\n"


def write_modelfile(out: Path, answering: Answering, is_adapter: bool) -> str:
    """Write the Modelfile of the GGUF file ``out`` beside it; return what is to be said of it."""
    turns, reason = None, None
    try:
        turns = find_turns(answering.tokenizer, answering.prompts)
        if turns is not None and '"""' in turns.as_go():
            raise UserError('it prints """, with which a Modelfile ends its templates')
    except UserError as error:
        turns, reason = None, " ".join(str(error).split())
    target = modelfile_of(out)
    stops = answering.tokenizer.convert_ids_to_tokens(answering.ends)
    text = modelfile(out.name, turns, reason, stops, answering.prompts, is_adapter)
    atomic_text(target, text)
    if reason is not None:
        return f"{target} has no TEMPLATE, as the chat template cannot be one of Ollama's: {reason}"
    return f"for Ollama: ollama create NAME -f {target}"
