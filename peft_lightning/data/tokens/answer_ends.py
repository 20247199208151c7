"""The special tokens with which a chat template ends an answer."""

import functools
from dataclasses import dataclass, replace

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Message
from peft_lightning.data.tokens.special_tokens import SpecialTokens
from peft_lightning.data.tokens.templates import ChatTemplate

QUESTION: Message = {"role": "user", "content": "A question to look for"}
NEXT: Message = {"role": "user", "content": "Another question to look for"}
ANSWER: Message = {"role": "assistant", "content": "An answer to look for"}
CALL: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call00000", "type": "function", "function": {"name": "look", "arguments": {}}}
    ],
}


@dataclass(frozen=True)
class AnswerEnds:
    """How the answers of a chat template end.

    Args:
        special_tokens: Finds special tokens in texts.
        tokens: The special tokens that stand at the end of an answer or of a tool call, if no
            message follows.
        after_last: Those of them that end the conversation, and not each answer, such as an EOS
            token behind the end-of-turn token of the last answer.
        end_of_turn: What the template prints behind the text of an answer, up to its last end
            token; empty if no special token ends an answer.
    """

    special_tokens: SpecialTokens
    tokens: tuple[str, ...] = ()
    after_last: tuple[str, ...] = ()
    end_of_turn: str = ""

    @classmethod
    def of_template(cls, template: ChatTemplate, special_tokens: SpecialTokens) -> "AnswerEnds":
        """Return the ends of the answers that ``template`` prints."""
        ends: list[str] = []
        for answer in (ANSWER, CALL):
            text = _rendered(template, [QUESTION, answer])
            ends += [token for _, token in special_tokens.at_the_end(text)] if text else []
        closing = _rendered(template, [QUESTION, ANSWER]).rpartition(ANSWER["content"])[2]
        followed = _rendered(template, [QUESTION, ANSWER, NEXT]).rpartition(ANSWER["content"])[2]
        last = special_tokens.in_order(closing)
        each = special_tokens.in_order(followed.partition(NEXT["content"])[0])
        same = 0
        while same < min(len(last), len(each)) and last[same] == each[same]:
            same += 1
        after_last = tuple(last[same:]) if same else ()
        found = cls(special_tokens, tuple(dict.fromkeys(ends)), after_last)
        end, ended = found.find(closing)
        return replace(found, end_of_turn=closing[:end] if ended else "")

    def find(self, text: str) -> tuple[int, bool]:
        """Find where an answer ends in what a template prints from the answer on.

        Returns:
            The end of its end-of-turn token, and True; if no special token ends the answer, the end
            of ``text`` without white space, and False.
        """
        found = self.special_tokens.at_the_end(text)
        if not found:
            return len(text.rstrip()), False
        extra = len(self.after_last)
        if 0 < extra < len(found) and tuple(t for _, t in found[-extra:]) == self.after_last:
            found = found[:-extra]
        return found[-1][0], True

    def split_off(self, content: str) -> tuple[str, str]:
        """Return the content of an answer without end tokens, and the first of these or ""."""
        ends = self._with_eos
        first, stripped = "", content.rstrip()
        while ends and stripped.endswith(ends):
            first = next(token for token in ends if stripped.endswith(token))
            content = stripped[: -len(first)]
            stripped = content.rstrip()
        return content, first

    @functools.cached_property
    def _with_eos(self) -> tuple[str, ...]:
        return tuple(token for token in (*self.tokens, self.special_tokens.eos) if token)


def _rendered(template: ChatTemplate, messages: list[Message]) -> str:
    try:
        return template.render(messages)
    except RowError:  # it refuses the messages
        return ""
