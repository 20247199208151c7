"""Prompts to generate from as token ids: those that precede the completion in a training row."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.rows.conversations import Conversation, Message, PlainText, Row
from peft_lightning.data.tokens.tokenization import RowTokenizer


class PromptEncoder:
    """Encodes prompts: token ids that precede the completion in a training row.

    Args:
        tokenizer: The model's tokenizer.
        chat_template: As for ``load_templates``. A template that prints today's date prints it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> None:
        today = TokenOptions(template_date=None)
        self._row_tokenizer = RowTokenizer(tokenizer, chat_template, today)

    def encode(self, prompt: str | Sequence[Message] | Row) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            prompt: Messages, a row without its completion, or a text. A text is a user's message
                if there is a template, else plain text.

        Raises:
            UserError: If there are messages but no template, or the template refuses them.
        """
        if isinstance(prompt, str):
            message = {"role": "user", "content": prompt}
            row: Row = Conversation([message], plain=PlainText([(prompt, False)]))
        else:
            row = prompt if isinstance(prompt, (Conversation, PlainText)) else Conversation(prompt)
        return self._row_tokenizer.encode_prompt(row)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message] | Row,
    chat_template: str | None = None,
) -> list[int]:
    """Return the token ids of one prompt; of several, by ``PromptEncoder``."""
    return PromptEncoder(tokenizer, chat_template).encode(prompt)
