"""From a row to its text, with the spans of characters that are in the loss."""

from dataclasses import dataclass

from peft_lightning.data.conversations import PlainText, Row
from peft_lightning.data.templates import ChatTemplate, WeightedSpan
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class RenderedRow:
    """The text of a row and the special tokens around it.

    Args:
        text: The text.
        spans: The spans of characters in the loss, with the weights of their tokens.
        add_eos: Whether the EOS token follows the text.
        eos_weight: The weight of that EOS token in the loss.
        add_special_prefix: Whether the special tokens that the tokenizer puts before a text, such
            as BOS, precede it; a chat template prints them itself.
    """

    text: str
    spans: list[WeightedSpan]
    add_eos: bool
    eos_weight: float
    add_special_prefix: bool = False


def render_row(row: Row, template: ChatTemplate | None, train_on: str) -> RenderedRow:
    """Render ``row`` and find its text in the loss.

    Args:
        row: A conversation or plain text.
        template: Renders conversations; without one their plain form is used.
        train_on: As for ``RowTokenizer``.

    Raises:
        RowError: If the template refuses the messages.
        UserError: If there is no template and the conversation has no plain form.
    """
    if isinstance(row, PlainText):
        return _render_plain(row, train_on)
    if template is None:
        if row.plain is None:
            raise UserError(
                "these rows are conversations, but the tokenizer has no chat template (or"
                " chat_template is 'none'); give chat_template the path of a Jinja file, take"
                " the tokenizer of an instruction-tuned model, or use prompt_completion rows"
            )
        return _render_plain(row.plain, train_on)
    text, spans, add_eos = template.render_with_spans(row, only_last=train_on != "assistant")
    if train_on == "all":
        return RenderedRow(text, [(0, len(text), 1.0)], add_eos, eos_weight=1.0)
    return RenderedRow(text, spans, add_eos, eos_weight=row.weight(len(row.messages) - 1))


def _render_plain(row: PlainText, train_on: str) -> RenderedRow:
    text, spans = "", []
    for segment, weight in row.segments:
        if train_on == "all":
            weight = 1.0
        if weight:
            spans.append((len(text), len(text) + len(segment), float(weight)))
        text += segment
    eos_weight = spans[-1][2] if spans else 0.0
    return RenderedRow(text, spans, True, eos_weight, add_special_prefix=True)
