"""Prompts to generate from as token ids: those that precede the completion in a training row."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from peft_lightning.data.prompt_format import PromptFormat
from peft_lightning.data.rows.conversations import (
    Conversation,
    Message,
    PlainText,
    Row,
    has_system,
    with_system,
)
from peft_lightning.data.tokens.tokenization import RowTokenizer

DEFAULT = PromptFormat()


class PromptEncoder:
    """Encodes prompts: token ids that precede the completion in a training row.

    Args:
        tokenizer: The model's tokenizer.
        prompt_format: How the training rows were made. By default, the tokenizer's own template
            makes the prompt, and one that prints today's date prints it.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt_format: PromptFormat = DEFAULT
    ) -> None:
        self.prompt_format = prompt_format
        self._row_tokenizer = RowTokenizer(
            tokenizer, prompt_format.chat_template, prompt_format.token_options()
        )

    def encode(self, prompt: str | Sequence[Message] | Row) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            prompt: Messages, a row without its completion, or a text. A text fills the template of
                the prompt, and is a user's message if there is a chat template, else plain text. A
                row is as the prompt format says already.

        Raises:
            UserError: If there are messages but no template, or the template refuses them.
        """
        if isinstance(prompt, (Conversation, PlainText)):
            return self._row_tokenizer.encode_prompt(prompt)
        if isinstance(prompt, str):
            text = self.prompt_format.filled(prompt)
            message = {"role": "user", "content": text}
            row = Conversation([message], plain=PlainText([(text, False)]))
        else:
            row = Conversation(prompt)
        system = self.prompt_format.system_prompt
        if system is not None and not has_system(row):
            row = with_system(row, system)
        return self._row_tokenizer.encode_prompt(row)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message] | Row,
    prompt_format: PromptFormat = DEFAULT,
) -> list[int]:
    """Return the token ids of one prompt; of several, by ``PromptEncoder``."""
    return PromptEncoder(tokenizer, prompt_format).encode(prompt)
