"""The part of Go's text/template that a Modelfile of ours uses, as its documentation has it."""

import re
from collections.abc import Iterator
from typing import Any

Messages = list[dict[str, Any]]


def render(source: str, messages: Messages) -> str:
    """Return what Ollama prints for a template that goes through ``.Messages``."""
    tree = _parse(iter(re.split(r"(\{\{.*?\}\})", source, flags=re.DOTALL)))[0]
    return _text(tree, messages, 0)


def _parse(parts: Iterator[str]) -> tuple[list[Any], str]:
    """Return nodes up to an end or an else, and which of the two it was."""
    nodes: list[Any] = []
    for part in parts:
        action = part[2:-2].strip() if part.startswith("{{") else None
        if action in ("end", "else"):
            return nodes, action
        if action is None or not action.startswith(("if ", "range ")):
            nodes.append(part if action is None else (action,))
            continue
        body, closed_by = _parse(parts)
        otherwise = _parse(parts)[0] if closed_by == "else" else []
        nodes.append((action, body, otherwise))
    return nodes, ""


def _text(nodes: list[Any], messages: Messages, i: int) -> str:
    text = ""
    for node in nodes:
        if isinstance(node, str):
            text += node
            continue
        action, *bodies = node
        if action == "range $i, $_ := .Messages":
            text += "".join(_text(bodies[0], messages, n) for n in range(len(messages)))
        elif action.startswith("if "):
            text += _text(bodies[not _holds(action[3:], messages, i)], messages, i)
        elif action == ".Content":
            text += messages[i]["content"]
        else:
            assert re.fullmatch(r'"[^"\\]*"', action), action
            text += action[1:-1]
    return text


def _holds(condition: str, messages: Messages, i: int) -> bool:
    if role := re.fullmatch(r'eq \.Role "(\w+)"', condition):
        return messages[i]["role"] == role[1]
    if condition == "eq $i 0":
        return i == 0
    assert condition == "eq (len (slice $.Messages $i)) 1", condition
    return i == len(messages) - 1
