"""What a conversation contains must appear in the text that a chat template prints of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.conversations import Conversation, Message
from peft_lightning.data.tokens.answer_ends import AnswerEnds
from peft_lightning.data.tokens.generated_turns import Turn, generated_turn
from peft_lightning.data.tokens.marks import without_marks
from peft_lightning.data.tokens.reasoning import FIELDS, INLINE, opened_thought, thought_of
from peft_lightning.data.tokens.templates import REFUSED, ChatTemplate

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
        ends: How answers end in it.
    """

    def __init__(self, template: ChatTemplate, ends: AnswerEnds) -> None:
        self.template, self.ends = template, ends
        self._shapes: dict[Any, RowError | None] = {}

    def require(self, row: Conversation, turns: Sequence[Turn]) -> None:
        """Raise if something of ``row`` is missing in the texts of ``turns``.

        Raises:
            RowError: Names the message, what is missing and the remedy.
        """
        variables, trained = row.template_kwargs, tuple(turn.index for turn in turns)
        shape = (
            tuple(map(_shape, row.messages)),
            trained,
            len(row.tools or ()),
            json.dumps(variables, sort_keys=True, default=str) if variables else "",
        )
        if shape not in self._shapes:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            self._shapes[shape] = self._missing_in_shape(row, trained)
        error = self._shapes[shape]
        if error is not None:
            raise error
        for turn in turns:
            answer = opened_thought(turn.prompt) + turn.answer[: turn.length]
            for what, text in _texts_of_answer(row.messages[turn.index]):
                if not _is_in(text, answer):
                    raise _error(turn.index, what, text)

    def _missing_in_shape(self, row: Conversation, trained: Sequence[int]) -> RowError | None:
        """Render the conversation with other words, and return an error for the first missing."""
        messages = [_with_words(message, i) for i, message in enumerate(row.messages)]
        tools = [_renamed(tool, f"tool{i}q") for i, tool in enumerate(row.tools or [])]
        words = replace(row, messages=messages, tools=tools)
        try:
            text = self.template.render(messages, tools, variables=row.template_kwargs)
            turns = [generated_turn(self.template, self.ends, words, i) for i in trained]
        except RowError:  # it wants contents of a certain form; the answers are still checked
            return None
        for i, message in enumerate(row.messages):
            if message.get("content") and f"word{i}q" not in text:
                return _error(i, message["role"], message["content"])
        for i, tool in enumerate(tools):
            if _name_of(tool) == f"tool{i}q" and f"tool{i}q" not in text:
                name = _name_of((row.tools or [])[i])
                return RowError(
                    "the chat template leaves out the tools", f"{name}; {REMEDIES['tools']}"
                )
        for turn in turns:
            meant = _texts_of_answer(row.messages[turn.index])
            looked_for = _texts_of_answer(messages[turn.index])
            for (what, text), (_, word) in zip(meant, looked_for, strict=True):
                if word not in turn.answer[: turn.length]:
                    return _error(turn.index, what, text)
        return None


def _shape(message: Message) -> tuple[Any, ...]:
    keys = tuple(key for key, value in message.items() if value)
    if message["role"] != "assistant":
        return (message["role"], *keys)
    thought = bool(INLINE.match(message.get("content") or ""))
    return ("assistant", *keys, thought, len(message.get("tool_calls") or ()))


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


def pieces_of_answer(message: Message) -> Iterator[tuple[str, str]]:
    """Yield thought, answer and the names of called tools of a message, each if there is one."""
    thought = thought_of(message)
    calls = (call.get("function", call) for call in message.get("tool_calls") or [])
    pieces = [("thought", thought.text), ("answer", thought.answer)]
    pieces += [("tool call", str(function["name"])) for function in calls]
    yield from ((what, text) for what, text in pieces if text.strip())


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


def _name_of(tool: Any) -> str:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""


def _with_words(message: Message, i: int) -> Message:
    """Return a message of the same shape with words that no template prints itself."""
    thought, content = f"thought{i}q", f"word{i}q"
    new = {**message, **{key: thought for key in FIELDS if message.get(key)}}
    if message["role"] == "assistant" and INLINE.match(message.get("content") or ""):
        content = f"<think>\n{thought}\n</think>\n\n{content}"
    if message.get("content"):
        new["content"] = content
    if message.get("tool_calls"):
        new["tool_calls"] = [
            _renamed(call, f"call{i}x{k}q") for k, call in enumerate(message["tool_calls"])
        ]
    return new


def _renamed(tool: Any, name: str) -> Any:
    """Return the schema of a tool, or a call of it, with another name."""
    if not isinstance(tool, Mapping):
        return tool
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": {**tool["function"], "name": name}}
    return {**tool, "name": name} if "name" in tool else tool


def with_remedy(error: RowError, row: Conversation, template: ChatTemplate) -> RowError:
    """Return the error of a template that refuses a conversation, with what to do about it."""
    if error.reason != REFUSED:
        return error
    rest = [m for m in row.messages if m["role"] not in ("system", "developer")]
    remedy = "give a chat_template that takes them, or change the messages"
    if len(rest) < len(row.messages):
        try:
            template.render(rest, row.tools, variables=row.template_kwargs)
        except RowError:
            pass
        else:
            remedy = "system: merge_into_user or drop"
    detail = error.args[0].removeprefix(f"{error.reason}: ")
    return RowError(error.reason, f"{detail}; {remedy}")


def _error(i: int, what: str, text: str) -> RowError:
    names = {"calls": "a tool call", "thought": "a thought", "assistant": "a part of an answer"}
    name = names.get(what, f"a message of the role {what}")
    remedy = REMEDIES.get(what, "give another chat_template")
    return RowError(
        f"the chat template leaves out {name}",
        f"message {i + 1}: {without_marks(text).strip()[:40]!r}; {remedy}",
    )
