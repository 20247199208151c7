"""What a conversation contains must appear in the text that a chat template prints of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from peft_lightning.data.conversations import Conversation, Message
from peft_lightning.data.generated_turns import Turn
from peft_lightning.data.reasoning import opened_thought, thought_of
from peft_lightning.data.records import RowError
from peft_lightning.data.templates import ChatTemplate

TOOL_WORD = "toolwordq"
MAX_SHAPES = 4096  # conversations of other shapes are checked each time

REMEDIES = {
    "system": "system: merge_into_user or drop changes the row; another chat_template prints it",
    "developer": "system: merge_into_user or drop changes the row; another chat_template prints it",
    "tool": "give a chat_template that prints the answers of tools",
    "thought": "reasoning: drop leaves thoughts out; another chat_template prints them",
    "calls": "give a chat_template that prints tool calls",
    "tools": "give a chat_template that prints tools, or leave the column out",
}


class ContentCheck:
    """Refuses rows of which a chat template leaves something out.

    Whether the template prints a message depends on the shape of the conversation: roles, keys and
    their order. Each shape is rendered once with words that the template cannot print itself. What
    is in the loss is also looked for word by word, because templates cut answers by their content.

    Args:
        template: The chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._shapes: dict[Any, RowError | None] = {}

    def require(self, row: Conversation, turns: Sequence[Turn]) -> None:
        """Raise if something of ``row`` is missing in the texts of ``turns``.

        Raises:
            RowError: Names the message, what is missing and the remedy.
        """
        shape = (
            tuple((m["role"], *(k for k, v in m.items() if v)) for m in row.messages),
            bool(row.tools),
            json.dumps(row.template_kwargs, sort_keys=True, default=str),
        )
        if shape not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self._missing_in_shape(row)
        error = self._shapes[shape]
        if error is not None:
            raise error
        for turn in turns:
            answer = opened_thought(turn.prompt) + turn.answer[: turn.end]
            for what, text in _texts_of_answer(row.messages[turn.index]):
                if not _is_in(text, answer):
                    raise _error(turn.index, what, text)

    def _missing_in_shape(self, row: Conversation) -> RowError | None:
        """Render the conversation with other words, and return an error for the first missing."""
        words = {i: f"word{i}q" for i, m in enumerate(row.messages) if m.get("content")}
        messages = [
            {**m, "content": words[i]} if i in words else m for i, m in enumerate(row.messages)
        ]
        tools = [_renamed(tool, TOOL_WORD) for tool in row.tools or []]
        try:
            text = self.template.render(messages, tools, variables=row.template_kwargs)
        except RowError:  # it wants contents of a certain form; the answers are still checked
            return None
        for i, word in words.items():
            if word not in text:
                return _error(i, row.messages[i]["role"], row.messages[i]["content"])
        if tools and TOOL_WORD not in text:
            names = ", ".join(map(_name_of, row.tools or []))
            return RowError(
                "the chat template leaves out the tools", f"{names}; {REMEDIES['tools']}"
            )
        return None


def _texts_of_answer(message: Message) -> Iterator[tuple[str, str]]:
    """Yield what the text of an answer must contain, and what it is."""
    thought = thought_of(message)
    yield "thought", thought.text
    yield "assistant", thought.answer
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        yield "calls", str(function["name"])
        for text in _leaves(function.get("arguments")):
            yield "calls", text


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)


def _is_in(text: str, rendered: str) -> bool:
    """Whether ``rendered`` contains ``text``, as it is or as JSON prints it."""
    text = text.strip()
    if text in rendered:
        return True
    return any(json.dumps(text, ensure_ascii=ascii)[1:-1] in rendered for ascii in (False, True))


def _renamed(tool: Any, name: str) -> Any:
    """Return the schema of a tool with another name."""
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return {**tool, "function": {**tool["function"], "name": name}}
    return {**tool, "name": name} if isinstance(tool, Mapping) else tool


def _name_of(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _error(i: int, what: str, text: str) -> RowError:
    names = {"calls": "a tool call", "thought": "a thought", "assistant": "a part of an answer"}
    name = names.get(what, f"a message of the role {what}")
    remedy = REMEDIES.get(what, "give another chat_template")
    return RowError(
        f"the chat template leaves out {name}", f"message {i + 1}: {text.strip()[:40]!r}; {remedy}"
    )
