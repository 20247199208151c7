"""Tool calls and tools, in the form of OpenAI's API, which chat templates print."""

from collections.abc import Mapping
from typing import Any

from peft_lightning.data.records import Finding, RowError
from peft_lightning.data.rows.json_text import parse_json

KEYS = frozenset(("id", "type", "index", "function", "name", "arguments", "parameters"))


def parse_tool_calls(value: Any, findings: list[Finding]) -> list[dict[str, Any]]:
    """Return tool calls as ``{"type": "function", "function": {"name", "arguments"}}``.

    Args:
        value: A call or a list of calls, perhaps as JSON text. A call may have its name and
            arguments outside of "function", "parameters" for "arguments", and the arguments as
            JSON text, even encoded twice.
        findings: Is extended by the keys that are not read.

    Raises:
        RowError: If a call has no name, or its arguments are not an object.
    """
    calls = parse_json(value, "tool calls")
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise RowError(
            "tool calls are not a list",
            f"got {type(calls).__name__}; write [{{'name': ..., 'arguments': {{...}}}}]",
        )
    return [_parse_call(parse_json(call, "tool calls"), findings) for call in calls]


def _parse_call(call: Any, findings: list[Finding]) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RowError(
            "a tool call is not an object",
            f"got {type(call).__name__}; write {{'name': ..., 'arguments': {{...}}}}",
        )
    outer = {key: value for key, value in call.items() if value is not None}
    inner = parse_json(outer.pop("function", outer), "tool calls")
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise RowError(
            "a tool call without a name",
            f"it has {list(call)}; write {{'name': ..., 'arguments': {{...}}}}",
        )
    arguments = inner.get("arguments")
    if inner.get("parameters") is not None:
        other = _parse_arguments(inner["parameters"], name)
        if arguments is not None and _parse_arguments(arguments, name) != other:
            raise RowError(
                "a tool call with both arguments and parameters",
                f"of {name}, and they differ; keep the arguments",
            )
        arguments = other
    unused = [key for key in (*outer, *inner) if key not in KEYS]
    findings.extend(Finding("unused key", f"tool_calls.{key}") for key in dict.fromkeys(unused))
    function = {"name": name, "arguments": _parse_arguments(arguments, name)}
    if inner is outer:
        outer = {key: outer[key] for key in ("id", "index") if key in outer}
    return {**outer, "type": outer.get("type", "function"), "function": function}


def _parse_arguments(value: Any, name: str) -> dict[str, Any]:
    arguments = parse_json(parse_json(value, "tool call's arguments"), "tool call's arguments")
    if arguments is None:
        return {}
    if not isinstance(arguments, dict):
        raise RowError(
            "a tool call's arguments are not an object",
            f"those of {name} are {type(arguments).__name__}; write {{'NAME': value}}",
        )
    return arguments


def parse_tools(tools: Any, functions: Any = None) -> list[dict[str, Any]] | None:
    """Return tools as ``{"type": "function", "function": schema}``; None if there are none.

    Args:
        tools: A tool or a list of tools, perhaps as JSON text; a tool may be the schema alone.
        functions: OpenAI's older form, a list of schemas.

    Raises:
        RowError: If a tool has no name, or both are given and differ.
    """
    parsed, older = _parse_list(tools, "tools"), _parse_list(functions, "functions")
    if parsed and older and parsed != older:
        raise RowError("both tools and functions", "and they differ; keep the tools")
    return parsed or older or None


def _parse_list(value: Any, column: str) -> list[dict[str, Any]]:
    tools = parse_json(value, column)
    if isinstance(tools, Mapping):
        tools = [tools] if tools else []
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise RowError(f"{column} are not a list", f"got {type(tools).__name__}; write [{{...}}]")
    return [_parse_tool(parse_json(tool, column), column) for tool in tools]


def _parse_tool(tool: Any, column: str) -> dict[str, Any]:
    schema = parse_json(tool.get("function", tool), column) if isinstance(tool, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
        got = list(tool) if isinstance(tool, Mapping) else type(tool).__name__
        raise RowError(
            f"an entry of {column} is not a tool with a name",
            f"got {got}; write {{'type': 'function', 'function': {{'name': ..., ...}}}}",
        )
    if "function" in tool:
        return {**tool, "type": tool.get("type") or "function", "function": schema}
    kind = {key: value for key, value in tool.items() if key != "type"}  # {type: function, name}
    return {"type": "function", "function": kind if tool.get("type") == "function" else dict(tool)}
