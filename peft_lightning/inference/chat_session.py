"""A conversation with a model: its messages so far, and the adapter that answers next."""

from __future__ import annotations

from transformers import TextStreamer

from peft_lightning.data import Message, PromptFormat, encode_prompt
from peft_lightning.inference.generate import decode_answer
from peft_lightning.inference.load import InferenceModel
from peft_lightning.messages import UserError


class ChatSession:
    """A conversation in which answers are printed while they are generated.

    Args:
        loaded: The base model and its adapters; the first adapter answers until ``use``. Their
            prompt formats give the system message and what the user's messages fill.
        max_new_tokens: Largest number of tokens of an answer.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_p: Sample only from the most probable tokens whose probabilities sum up to this.
        seed: Seed of the samples.

    Raises:
        UserError: If the tokenizer has no chat template.
    """

    def __init__(
        self,
        loaded: InferenceModel,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> None:
        if loaded.tokenizers[loaded.names[0]].chat_template is None:
            raise UserError(
                "a chat needs a chat template, and this tokenizer has none: give one with "
                "--chat_template, or continue plain text with the command generate"
            )
        self.loaded, self.seed, self.max_new_tokens = loaded, seed, max_new_tokens
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self.reset()
        self.use(loaded.names[0])

    @property
    def adapter(self) -> str:
        """The name of the adapter that answers; ``base`` for none."""
        return self.loaded.bank.active

    def use(self, name: str) -> None:
        """Let the adapter ``name`` answer; raise UserError if there is none of that name."""
        self.loaded.bank.use(name)

    def reset(self) -> None:
        """Forget all messages."""
        self.messages: list[Message] = []

    def answer(self, text: str) -> str:
        """Return the answer to a user message, and add both to the conversation.

        Raises:
            UserError: If the conversation exceeds the model's positions; nothing is added.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokenizer = self.loaded.tokenizers[self.adapter]
        prompt_format = self.loaded.prompt_formats[self.adapter]
        asked = [_filled(message, prompt_format) for message in messages]
        [ids] = self.loaded.generate(
            self.adapter,
            [encode_prompt(tokenizer, asked, prompt_format)],
            self.max_new_tokens,
            **self._sampling,
            seed=self.seed + len(messages),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        answer = decode_answer(tokenizer, ids)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer


def _filled(message: Message, prompt_format: PromptFormat) -> Message:
    if message["role"] != "user":
        return message
    return {**message, "content": prompt_format.filled(message["content"])}
