"""The sources of chat templates: from the tokenizer, a file or a text, with a date of their own."""

import datetime
import re
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from peft_lightning.messages import UserError

ASKS_FOR_DATE = re.compile(r"strftime_now\(\s*(?P<quote>['\"])(?P<format>.*?)(?P=quote)\s*\)")


def load_templates(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> dict[str, str]:
    """Return the sources of the chat templates by name, or none of them for plain text.

    Args:
        tokenizer: Provides the templates if ``chat_template`` is None: one, called "default", or
            several with names, of which "tool_use" is for conversations with tools.
        chat_template: "none" for plain text, the path of a Jinja file, or the source of a template.

    Raises:
        UserError: If the file does not exist or is no chat template, or if none of several
            templates is the default.
    """
    if chat_template is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            return _with_default(own)
        return {"default": own} if own else {}
    if chat_template == "none":
        return {}
    if is_template_source(chat_template):
        return {"default": chat_template}
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise UserError(
            f"chat_template {chat_template!r}: no such file; give the path of a Jinja file, 'none'"
            " for plain text, or nothing for the tokenizer's own template"
        )
    source = path.read_text(encoding="utf-8")
    if "messages" not in source:
        raise UserError(
            f"chat_template {chat_template!r}: the file never mentions 'messages', so it is no"
            " chat template; give a Jinja file that renders the list 'messages'"
        )
    return {"default": source}


def is_template_source(text: str) -> bool:
    """Whether a text is a chat template, and not the path of one."""
    return "{%" in text or "{{" in text


def set_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> None:
    """Give ``tokenizer`` a chat template as for ``load_templates``; None keeps its own."""
    if chat_template is not None:
        templates = load_templates(tokenizer, chat_template)
        tokenizer.chat_template = templates.get("default")


def _with_default(templates: Mapping[str, str]) -> dict[str, str]:
    if "default" in templates:
        return dict(templates)
    if len(templates) == 1:
        return {"default": next(iter(templates.values()))}
    raise UserError(
        f"the tokenizer has several chat templates ({', '.join(templates)}) and none of them is"
        " called default; save the one that is meant as a file, and name it with chat_template"
    )


def with_date(source: str, date: str | None) -> str:
    """Return a template that prints ``date`` where ``source`` asks for today's."""
    if date is None:
        return source
    try:
        day = datetime.datetime.strptime(date, "%Y-%m-%d")
    except ValueError:
        raise UserError(f"template_date must be a date such as 2026-01-31, got {date!r}") from None

    def formatted(match: re.Match[str]) -> str:
        return repr(day.strftime(match["format"]))

    return ASKS_FOR_DATE.sub(formatted, source)
