"""The assistant's turns as generation would produce them: a prompt, and the answer to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_lightning.data.conversations import Conversation, Message
from peft_lightning.data.reasoning import close_thought, opened_thought, thought_of
from peft_lightning.data.records import RowError
from peft_lightning.data.special_tokens import SpecialTokens
from peft_lightning.data.templates import ChatTemplate

PROBE = "An answer to look for"  # a content that no template prints itself


@dataclass(frozen=True)
class Turn:
    """An assistant's turn of a conversation.

    Args:
        index: The index of its message.
        prompt: The text that generation is given.
        answer: What it would continue the prompt with, and what the template prints after that.
        end: The length of the answer with its end-of-turn token.
        ended: Whether the template ends the answer with a special token.
    """

    index: int
    prompt: str
    answer: str
    end: int
    ended: bool

    @property
    def text(self) -> str:
        """The prompt and the answer, and what follows up to the next turn if the turn is ended."""
        return self.prompt + (self.answer if self.ended else self.answer[: self.end])

    def is_in(self, other: "Turn") -> bool:
        """Whether the text of ``other`` begins as generation would produce this turn."""
        if self is other:
            return True
        return self.ended and other.text.startswith(self.prompt + self.answer[: self.end])


def generated_turn(
    template: ChatTemplate, tokens: SpecialTokens, row: Conversation, i: int
) -> Turn:
    """Return message ``i`` of a conversation as generation would produce it.

    The prompt is the messages before it with the template's generation prompt. The answer is what
    the template prints from there on, if no message follows. Where the generation prompt opens a
    thought that the template does not print in answers, the thought of the message and its closing
    tag come first.

    Raises:
        RowError: If the template refuses the messages, or prints something else before the answer
            than its generation prompt.
    """
    messages = list(row.messages[: i + 1])
    rendered = template.render(messages, row.tools, variables=row.template_kwargs)
    prompt = _prompt(template, row, i, rendered)
    if rendered.startswith(prompt):
        answer = rendered[len(prompt) :]
    else:
        header = _before_content(template, row, i)
        if not rendered.startswith(header) or not prompt.startswith(header):
            raise RowError(
                "the chat template prints something else before an answer than its generation"
                " prompt",
                f"message {i + 1}: {_tail(rendered[: len(header)])!r} and {_tail(prompt)!r}; give"
                " another chat_template, or chat_template_kwargs with which they agree",
            )
        answer = rendered[len(header) :]
        if opened_thought(prompt):
            answer = close_thought(prompt, thought_of(messages[i]).text) + answer
    end, ended = tokens.end_of_answer(answer)
    return Turn(i, prompt, answer, end, ended)


def _prompt(template: ChatTemplate, row: Conversation, i: int, rendered: str) -> str:
    """Return what generation is given to produce message ``i``."""
    before = row.messages[:i]
    if before:
        return template.render(
            before, row.tools, generation_prompt=True, variables=row.template_kwargs
        )
    header = template.generation_header  # templates cannot render zero messages
    at = rendered.find(header)
    if not header or at < 0:
        raise RowError(
            "first message from the assistant",
            "the chat template has no generation prompt for it; begin with a user's message",
        )
    return rendered[: at + len(header)]


def _before_content(template: ChatTemplate, row: Conversation, i: int) -> str:
    """Return what the template prints before the content of message ``i``, its prompt included."""
    probe: Message = {"role": "assistant", "content": PROBE}
    text = template.render([*row.messages[:i], probe], row.tools, variables=row.template_kwargs)
    return text.partition(PROBE)[0]


def _tail(text: str) -> str:
    return text[-40:]


def sequences_of(turns: Sequence[Turn]) -> list[tuple[Turn, list[Turn]]]:
    """Group turns into the fewest texts that contain each as generation would produce it.

    Args:
        turns: Turns of one conversation, in their order.

    Returns:
        Pairs of the turn whose text is used, and the turns which that text contains, itself among
        them. A template that prints earlier turns as they were generated needs one text.
    """
    left = list(turns)
    sequences = []
    while left:
        contained = [turn for turn in left if turn.is_in(left[-1])]
        sequences.append((left[-1], contained))
        left = [turn for turn in left if turn not in contained]
    return sequences[::-1]
