"""From a row to its texts: by the chat template, or as plain text."""

from dataclasses import replace

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.rows.conversations import Conversation, PlainText, Row
from peft_lightning.data.tokens.answer_ends import AnswerEnds
from peft_lightning.data.tokens.conversation_rendering import ConversationRenderer
from peft_lightning.data.tokens.plain_text import PlainTextRenderer
from peft_lightning.data.tokens.rendered_row import RenderedRow
from peft_lightning.data.tokens.special_tokens import SpecialTokens
from peft_lightning.data.tokens.templates import ChatTemplate
from peft_lightning.messages import UserError


class RowRenderer:
    """Renders rows, each to one or several texts.

    Args:
        template: Renders conversations; without one their plain form is used.
        tokens: The special tokens of the tokenizer.
        options: How rows become tokens.
    """

    def __init__(
        self, template: ChatTemplate | None, tokens: SpecialTokens, options: TokenOptions
    ) -> None:
        ends = AnswerEnds(tokens)
        self._conversations = None
        if template is not None:
            ends = AnswerEnds.of_template(template, tokens)
            self._conversations = ConversationRenderer(template, ends, options)
        self._plain = PlainTextRenderer(template, tokens, ends, options)

    def render(self, row: Row) -> list[RenderedRow]:
        """Render ``row`` and find what is in the loss.

        Raises:
            RowError: If the row cannot be rendered as it says.
            UserError: If it is a conversation without plain form and there is no template.
        """
        if isinstance(row, PlainText):
            return [self._plain.render(row, self._plain.is_rendered(row.segments))]
        if self._conversations is None:
            return [self._plain.render(_plain_form(row), rendered=False)]
        if row.plain and self._plain.is_rendered(row.plain.segments[:1]):
            return [self._plain.render(row.plain, rendered=True)]
        return self._conversations.render(row)

    def render_prompt(self, row: Row) -> RenderedRow:
        """Render a row without its completion, as generation is given it.

        Raises:
            RowError: If the template refuses the messages.
            UserError: If it is a conversation without plain form and there is no template.
        """
        if isinstance(row, PlainText):
            return self._plain.render_prompt(row, self._plain.is_rendered(row.segments))
        if self._conversations is None:
            return self._plain.render_prompt(_plain_form(row), rendered=False)
        if row.plain and self._plain.is_rendered(row.plain.segments):
            return self._plain.render_prompt(row.plain, rendered=True)
        return self._conversations.render_prompt(row)


def _plain_form(row: Conversation) -> PlainText:
    if row.plain is None:
        raise UserError(
            "these rows are conversations, but the tokenizer has no chat template (or"
            " chat_template is 'none'); give chat_template the path of a Jinja file, take"
            " the tokenizer of an instruction-tuned model, or use prompt_completion rows"
        )
    return replace(row.plain, findings=(*row.findings, *row.plain.findings))
