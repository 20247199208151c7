"""From a record to a conversation or plain text: columns, formats, roles, flags of the loss, tools.

``row_parser.py`` is where to start: it finds the columns, calls the format, which is one function
of ``formats.py``, and notes what nothing reads. ``turns.py`` reads one turn of a conversation;
docs/data-rows.md lists every key that is read.
"""

from peft_lightning.data.rows.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.rows.format_detection import resolve_format
from peft_lightning.data.rows.row_parser import RowParser

__all__ = ["Conversation", "Message", "PlainText", "Row", "RowParser", "resolve_format"]
