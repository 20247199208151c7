"""Variables of the chat template that a row gives, such as enable_thinking."""

from dataclasses import replace

from peft_lightning.data.records import Record, RowError
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.rows.json_text import parse_json

TEMPLATE_KWARGS = ("chat_template_kwargs", "enable_thinking", "reasoning_effort")
RESERVED_KWARGS = frozenset(("messages", "tools", "add_generation_prompt", "tokenize"))


def with_template_kwargs(row: Conversation, record: Record) -> Conversation:
    """Return ``row`` with the variables of the chat template that its columns give.

    Args:
        row: The conversation.
        record: Its columns; ``chat_template_kwargs`` may be JSON text.

    Raises:
        RowError: If they are no variables, or contradict each other.
    """
    value = parse_json(record.get("chat_template_kwargs"), "chat_template_kwargs")
    if value is not None and not isinstance(value, dict):
        right = "write {'enable_thinking': false}"
        raise RowError(
            "chat_template_kwargs are not an object", f"got {type(value).__name__}; {right}"
        )
    kwargs = {key: item for key, item in (value or {}).items() if item is not None}
    for name in TEMPLATE_KWARGS[1:]:
        item = record.get(name)
        if item not in (None, "") and kwargs.setdefault(name, item) != item:
            raise RowError(
                f"two values of {name}", "of the row and its chat_template_kwargs; keep one"
            )
    if reserved := RESERVED_KWARGS & kwargs.keys():
        raise RowError(
            "chat_template_kwargs hold what the row has elsewhere",
            f"{', '.join(sorted(reserved))}; write it as a column of its own, or leave it out",
        )
    return replace(row, template_kwargs=kwargs) if kwargs else row
