"""The content of a message: text or a list of parts, each perhaps with flags of the loss."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.json_text import parse_json
from peft_lightning.data.rows.loss_flags import TURN_FLAGS, combined_weight, parse_flag
from peft_lightning.data.rows.text_values import as_text

TEXT_KEYS = ("text", "content")  # torchtune's parts have content
TEXT_TYPES = (None, "text", "input_text", "output_text")
THOUGHT_TYPES = ("thinking", "reasoning")

Pieces = list[tuple[str, float | None]]  # text with its weight in the loss, None if it has no flag


class Content(NamedTuple):
    """What a message says.

    Args:
        text: The text; None for none.
        pieces: The text in pieces if any of them has a flag of the loss, else empty.
        thought: The text of the parts that are thoughts.
    """

    text: str | None
    pieces: Pieces
    thought: str


def parse_content(content: Any, findings: list[Finding]) -> Content:
    """Return the text of a message's content and the flags of its parts.

    Args:
        content: Text, a number, or a list of parts; None for none.
        findings: Is extended by the keys of parts that are not read.

    Raises:
        RowError: If a part is not text.
    """
    if content is None or isinstance(content, str):
        return Content(content, [], "")
    if not isinstance(content, list):
        return Content(as_text(content, "content", findings), [], "")
    pieces: Pieces = []
    thoughts = ""
    for part in content:
        if isinstance(part, str):
            pieces.append((part, None))
            continue
        if not isinstance(part, Mapping):
            raise _not_text(type(part).__name__)
        said = {key: value for key, value in part.items() if value not in (None, "", [])}
        kind = said.pop("type", None)
        if kind in THOUGHT_TYPES:
            thoughts += _text_of(said, (*THOUGHT_TYPES, *TEXT_KEYS))
        elif kind in TEXT_TYPES:
            flags = {key: said.pop(key) for key in said.keys() & TURN_FLAGS}
            pieces.append((_text_of(said, TEXT_KEYS, part), combined_weight(flags)))
        else:
            raise _not_text(kind)
        findings.extend(Finding("unused key", f"content.{key}") for key in said)
    text = "".join(piece for piece, _ in pieces)
    flagged = any(weight is not None for _, weight in pieces)
    return Content(text, pieces if flagged else [], thoughts)


def _text_of(
    said: dict[str, Any], keys: tuple[str, ...], part: Mapping[str, Any] | None = None
) -> str:
    """Take the text of a part out of what it says."""
    found = [said.pop(key) for key in keys if key in said]
    if len(found) == 1 and isinstance(found[0], str):
        return found[0]
    if not found and part is not None and any(part.get(key) == "" for key in keys):
        return ""
    raise RowError(
        "a part of a message without text",
        f"its {keys[0]} is {type(found[0]).__name__ if found else 'missing'};"
        " write {'type': 'text', 'text': ...}",
    )


def _not_text(kind: Any) -> RowError:
    return RowError(
        "a part of a message is not text",
        f"it is {kind!r:.40}; only text can be trained on: leave the part or the row out",
    )


def split_by_train_detail(text: str, detail: Any, name: str) -> Pieces:
    """Cut ``text`` at axolotl's ``train_detail``: a list of begin_offset, end_offset and train.

    Both offsets are characters, the end inclusive. What no entry covers is not trained on.

    Args:
        text: The content of the turn.
        detail: The list, perhaps as JSON text.
        name: The name of its key, for messages.

    Raises:
        RowError: If an entry is malformed, outside of the text, or overlaps another one.
    """
    entries = parse_json(detail, name)
    right = "write [{'begin_offset': 0, 'end_offset': 8, 'train': false}], the end inclusive"
    if not isinstance(entries, list):
        raise RowError(f"{name} is not a list", f"got {type(entries).__name__}; {right}")
    spans = []
    for entry in entries:
        values: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        begin: Any = values.get("begin_offset")
        end: Any = values.get("end_offset")
        whole = isinstance(begin, int) and isinstance(end, int) and values.get("train") is not None
        if not (whole and 0 <= begin <= end < len(text)):
            got = f"{entry!r:.80} of a text of {len(text)} characters"
            raise RowError(f"an entry of {name} is no span of the text", f"{got}; {right}")
        spans.append((begin, end + 1, parse_flag("train", values["train"])))
    pieces: Pieces = []
    at = 0
    for begin, end, weight in sorted(spans):
        if begin < at:
            raise RowError(f"entries of {name} overlap", f"at character {begin}; {right}")
        pieces += [(text[at:begin], 0.0), (text[begin:end], weight)]
        at = end
    return [*pieces, (text[at:], 0.0)]
