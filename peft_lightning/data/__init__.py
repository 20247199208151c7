"""Supervised fine-tuning data: from files of records to batches of token ids.

``datamodule.py`` is where to start: it names the files that a batch passes. Records come from
``sources.py``, ``row_parser.py`` turns them into conversations or text with a format of
``formats.py``, ``tokenization.py`` into token ids and loss masks, ``cache.py`` stores those,
``batching.py`` and ``collate.py`` form batches, and ``resume.py`` continues a run at its position.
``SFTDataModule`` is imported from ``datamodule``, because it needs Lightning; the names below do
not.
"""

from peft_lightning.data.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.format_detection import resolve_format
from peft_lightning.data.options import RowOptions
from peft_lightning.data.prompts import assign_adapters
from peft_lightning.data.records import RowError
from peft_lightning.data.row_parser import RowParser
from peft_lightning.data.sources import find_source
from peft_lightning.data.template_sources import load_templates, set_template
from peft_lightning.data.templates import ChatTemplate
from peft_lightning.data.tokenization import encode_prompt

__all__ = [
    "ChatTemplate",
    "Conversation",
    "Message",
    "PlainText",
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
