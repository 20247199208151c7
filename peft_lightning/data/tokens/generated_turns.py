"""The assistant's turns as generation would produce them: a prompt, and the answer to it."""

from collections.abc import Sequence
from dataclasses import dataclass

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.tokens.answer_ends import ANSWER, AnswerEnds
from peft_lightning.data.tokens.reasoning import (
    close_thought,
    opened_thought,
    thought_of,
    without_thought,
)
from peft_lightning.data.tokens.templates import ChatTemplate


@dataclass(frozen=True)
class Turn:
    """An assistant's turn of a conversation.

    Args:
        index: The index of its message.
        prompt: The text that generation is given.
        answer: What it would continue the prompt with, and what the template prints after that.
        length: The length of the answer with its end-of-turn token.
        ended: Whether a special token ends the answer.
    """

    index: int
    prompt: str
    answer: str
    length: int
    ended: bool

    @property
    def start(self) -> int:
        """Where the answer begins in the text."""
        return len(self.prompt)

    @property
    def end(self) -> int:
        """Where the answer ends in the text, behind its end-of-turn token."""
        return len(self.prompt) + self.length

    @property
    def text(self) -> str:
        """The prompt and the answer, and what follows up to the next turn if the turn is ended."""
        return self.prompt + (self.answer if self.ended else self.answer[: self.length])

    def begins(self, text: str) -> bool:
        """Whether ``text`` begins with this turn as generation would produce it, and goes on."""
        return self.ended and text.startswith(self.prompt + self.answer[: self.length])


def generated_turn(template: ChatTemplate, ends: AnswerEnds, row: Conversation, i: int) -> Turn:
    """Return message ``i`` of a conversation as generation would produce it.

    The prompt is the messages before it with the template's generation prompt. The answer is what
    the template prints from there on, if no message follows. Where the generation prompt opens a
    thought that the template does not print in answers, the thought of the message and its closing
    tag come first.

    Raises:
        RowError: If the template refuses the messages, or prints something else before the answer
            than its generation prompt.
    """
    rendered = _rendered(template, row, i)
    prompt = _prompt(template, row, i, rendered)
    if rendered.startswith(prompt):
        answer = rendered[len(prompt) :]
    else:
        header = _before_content(template, row, i)
        if not rendered.startswith(header) or not prompt.startswith(header):
            thought = ", or reasoning: drop" if thought_of(row.messages[i]).text else ""
            raise RowError(
                "the chat template prints something else before an answer than its generation"
                " prompt",
                f"message {i + 1}: {_tail(rendered[: len(header)])!r} and {_tail(prompt)!r}; give"
                f" another chat_template, chat_template_kwargs with which they agree{thought}",
            )
        if opened_thought(prompt):
            rendered = _rendered(template, row, i, with_thought=False)
            thought = close_thought(prompt, thought_of(row.messages[i]).text)
            answer = thought + rendered[len(header) :]
        else:
            answer = rendered[len(header) :]
    length, ended = ends.find(answer)
    return Turn(i, prompt, answer, length, ended)


def _rendered(template: ChatTemplate, row: Conversation, i: int, with_thought: bool = True) -> str:
    message = row.messages[i] if with_thought else without_thought(row.messages[i])
    return template.render([*row.messages[:i], message], row.tools, variables=row.template_kwargs)


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
    messages = [*row.messages[:i], ANSWER]
    text = template.render(messages, row.tools, variables=row.template_kwargs)
    return text.partition(ANSWER["content"])[0]


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
        last = left[-1]
        contained = [turn for turn in left if turn is last or turn.begins(last.text)]
        sequences.append((last, contained))
        left = [turn for turn in left if turn not in contained]
    return sequences[::-1]
