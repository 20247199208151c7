"""Supervised fine-tuning data: from files of records to batches of token ids.

``datamodule.py`` is where to start: it names the files that a batch passes. ``files/`` reads
records, ``rows/`` turns them into conversations or text, ``tokens/`` into token ids with weights in
the loss; ``cache.py`` stores those, ``batching.py`` and ``collate.py`` form batches, ``resume.py``
continues a run at its position, and ``audit/`` tells what is odd. ``SFTDataModule`` is imported
from ``datamodule``, because it needs Lightning; the names below do not.
"""

from peft_lightning.data.files import find_source
from peft_lightning.data.options import RowOptions
from peft_lightning.data.prompt_format import PromptFormat
from peft_lightning.data.prompts import assign_adapters
from peft_lightning.data.records import RowError
from peft_lightning.data.rows import (
    Conversation,
    Message,
    PlainText,
    Row,
    RowParser,
    resolve_format,
)
from peft_lightning.data.rows.columns import PromptTemplate
from peft_lightning.data.tokens.prompt_encoding import PromptEncoder, encode_prompt
from peft_lightning.data.tokens.template_sources import load_templates, set_template
from peft_lightning.data.tokens.templates import ChatTemplate

__all__ = [
    "ChatTemplate",
    "Conversation",
    "Message",
    "PlainText",
    "PromptEncoder",
    "PromptFormat",
    "PromptTemplate",
    "Row",
    "RowError",
    "RowOptions",
    "RowParser",
    "assign_adapters",
    "encode_prompt",
    "find_source",
    "load_templates",
    "resolve_format",
    "set_template",
]
