"""The messages of a conversation as a chat template is given them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peft_lightning.data.options import TokenOptions
from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.conversations import Conversation, Message
from peft_lightning.data.tokens.answer_ends import AnswerEnds
from peft_lightning.data.tokens.marks import PART
from peft_lightning.data.tokens.reasoning import (
    thought_of,
    with_end_of_thought,
    with_thought_in_field,
    without_thought,
)
from peft_lightning.data.tokens.special_tokens import SpecialTokens

SYSTEM_ROLES = ("system", "developer")


class Preparation:
    """Applies the options to the messages of conversations, and marks what is looked for later.

    Args:
        tokens: The special tokens of the tokenizer.
        ends: How answers end in the chat template.
        thoughts_have_a_field: Whether the template prints ``reasoning_content`` of messages.
        options: How rows become tokens.
    """

    def __init__(
        self,
        tokens: SpecialTokens,
        ends: AnswerEnds,
        thoughts_have_a_field: bool,
        options: TokenOptions,
    ) -> None:
        self.tokens, self.ends, self.options = tokens, ends, options
        self.thoughts_have_a_field = thoughts_have_a_field

    def prepare(self, row: Conversation) -> tuple[Conversation, list[Finding]]:
        """Return the row with marked messages, and findings about it.

        Raises:
            RowError: If an option refuses something in it.
        """
        findings = list(row.findings)
        if self.options.system != "keep":
            row = self._without_system(row, findings)
        messages = [self._prepared(row, i, findings) for i in range(len(row.messages))]
        variables, tools = row.template_kwargs, row.tools
        if self.options.chat_template_kwargs:
            variables = {**self.options.chat_template_kwargs, **variables}
        if tools:
            tools = self._marked(tools, findings)
        prepared = Conversation(messages, tools, row.weights, row.parts, variables)
        return prepared, findings

    def _prepared(self, row: Conversation, i: int, findings: list[Finding]) -> Message:
        """Return message ``i`` with its special tokens, parts and thought marked."""
        message = row.messages[i]
        if message["role"] != "assistant":
            marked: Message = self._marked(message, findings)
            return marked
        parts: Any = [text for text, _ in row.parts.get(i, ())] or [message.get("content")]
        if parts[-1]:
            parts[-1], end = self.ends.split_off(parts[-1])
            if end:
                findings.append(Finding("answer that ends with the special token", end))
        marked = self._marked({**message, "content": parts}, findings, answer=True)
        content = marked["content"]
        marked = {**marked, "content": content[0] if len(content) == 1 else PART.join(content)}
        return self._with_thought(marked, findings)

    def _marked(self, value: Any, findings: list[Finding], answer: bool = False) -> Any:
        if self.tokens.is_clean(value):
            return value
        findings += self.tokens.findings(value, answer)
        return self.tokens.mark(value, answer)

    def _with_thought(self, message: Message, findings: list[Finding]) -> Message:
        """Return an assistant's message with its thought as ``reasoning`` says."""
        if not thought_of(message).text:
            return message
        reasoning = self.options.reasoning
        if reasoning == "error":
            raise RowError(
                "a thought of the assistant",
                "reasoning: train trains it, mask makes it context, drop leaves it out",
            )
        if reasoning == "drop":
            findings.append(Finding("thought left out"))
            return without_thought(message)
        if self.thoughts_have_a_field:
            message = with_thought_in_field(message)
        return with_end_of_thought(message) if reasoning == "mask" else message

    def _without_system(self, row: Conversation, findings: list[Finding]) -> Conversation:
        """Return the row without its system messages."""
        kept = [i for i, m in enumerate(row.messages) if m["role"] not in SYSTEM_ROLES]
        if len(kept) == len(row.messages):
            return row
        messages = [row.messages[i] for i in kept]
        if self.options.system == "merge_into_user":
            _merge([m["content"] for m in row.messages if m["role"] in SYSTEM_ROLES], messages)
        else:
            findings.append(Finding("system message left out"))
        weights = [row.weight(i) for i in kept]
        parts = {kept.index(i): part for i, part in row.parts.items() if i in kept}
        return replace(row, messages=messages, weights=weights, parts=parts)


def _merge(system: Sequence[str], messages: list[Message]) -> None:
    """Put the texts of system messages before the first user's message."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first is None:
        raise RowError("no user's message", "to merge the system message into")
    merged = "\n\n".join([*system, messages[first]["content"]])
    messages[first] = {**messages[first], "content": merged}
