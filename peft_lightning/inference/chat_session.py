"""Conversations with a model: one with each adapter, and the adapter that answers next."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from peft_lightning.data import Message, PromptFormat, encode_prompt
from peft_lightning.inference.answer_text import decode_answer, is_cut
from peft_lightning.inference.load import InferenceModel
from peft_lightning.messages import UserError


class ChatSession:
    """Conversations in which answers are printed while they are generated.

    Each adapter has its own, and the base too: one that sees the turns of another goes on in their
    manner, so that a base would copy an adapter and seem as good.

    Args:
        loaded: The base model and its adapters; the first adapter answers until ``use``. Their
            prompt formats give the system message and what the user's messages fill.
        max_new_tokens: Largest number of tokens of an answer.
        temperature: Divisor of the logits; 0 takes the most probable token.
        top_p: Sample only from the most probable tokens whose probabilities sum up to this.
        seed: Seed of the samples.
        stop: Strings that end an answer.

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
        stop: Sequence[str] = (),
    ) -> None:
        if loaded.tokenizers[loaded.names[0]].chat_template is None:
            raise UserError(
                "a chat needs a chat template, and this tokenizer has none: give one with "
                "--chat_template, or continue plain text with the command generate"
            )
        self.loaded, self.seed, self.max_new_tokens = loaded, seed, max_new_tokens
        self._sampling = {"temperature": temperature, "top_p": top_p}
        self._stop = tuple(stop)
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
        """Forget all messages of all adapters."""
        self._conversations: dict[str, list[Message]] = {}

    @property
    def messages(self) -> list[Message]:
        """The messages of the conversation with the adapter that answers."""
        return self._conversations.setdefault(self.adapter, [])

    def answer(self, text: str) -> str:
        """Return the answer to a user message, and add both to the conversation.

        Raises:
            UserError: If the conversation exceeds the model's positions; nothing is added.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        tokenizer = self.loaded.tokenizers[self.adapter]
        prompt_format = self.loaded.prompt_formats[self.adapter]
        asked = [_filled(message, prompt_format) for message in messages]
        shown: list[str] = []

        def show(piece: str) -> None:
            shown.append(piece)
            print(piece, end="", flush=True)

        [ids] = self.loaded.generate(
            self.adapter,
            [encode_prompt(tokenizer, asked, prompt_format)],
            self.max_new_tokens,
            **self._sampling,
            seed=self.seed + len(messages),
            stop=self._stop,
            on_text=show,
        )
        answer = decode_answer(tokenizer, ids, self._stop)
        print(answer.removeprefix("".join(shown)), flush=True)
        if is_cut(tokenizer, ids, self.max_new_tokens, self._stop):
            print(f"(cut at max_new_tokens {self.max_new_tokens})", file=sys.stderr)
        self._conversations[self.adapter] = [*messages, {"role": "assistant", "content": answer}]
        return answer


def _filled(message: Message, prompt_format: PromptFormat) -> Message:
    if message["role"] != "user":
        return message
    return {**message, "content": prompt_format.filled(message["content"])}
