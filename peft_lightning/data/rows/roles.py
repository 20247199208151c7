"""Roles of turns: the names that data sets give them, and which role each one means."""

from collections.abc import Mapping
from typing import Any

from peft_lightning.data.records import RowError
from peft_lightning.messages import UserError, did_you_mean

CALL = "function_call"  # the assistant's turn, with its tool calls as content

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
    **dict.fromkeys(
        # LLaMA-Factory: observation; Llama 3: ipython; ms-swift: tool_response; OpenAI: function
        (
            *("tool", "function", "observation", "ipython"),
            *("function_response", "tool_response", "tool_result"),
        ),
        "tool",
    ),
    **dict.fromkeys((CALL, "tool_call", "tool_calls"), CALL),
}


def roles_with(named: Mapping[str, str]) -> Mapping[str, str]:
    """Return the known names of roles and those that the user names.

    Args:
        named: Names in the data, each with the role that is meant, as in ``data.roles``.

    Raises:
        UserError: If a role is meant that does not exist.
    """
    if not named:
        return ROLES
    for name, role in named.items():
        if ROLES.get(role) is None:
            raise UserError(
                f"data.roles: {name!r} cannot mean {role!r}; a role is system, user, assistant,"
                f" tool or {CALL}{did_you_mean(str(role), ROLES)}"
            )
    lower = {name.lower(): ROLES[role] for name, role in named.items()}
    return {**ROLES, **lower, **{name: ROLES[role] for name, role in named.items()}}


def parse_role(name: Any, roles: Mapping[str, str] = ROLES) -> str:
    """Return the role that ``name`` means: system, user, assistant, tool or function_call.

    Args:
        name: The name in the data, in any case.
        roles: Names of roles, of ``roles_with``.

    Raises:
        RowError: If the name is not known.
    """
    if isinstance(name, str):
        role = roles.get(name) or roles.get(name.strip().lower())
        if role is not None:
            return role
    hint = did_you_mean(name, roles) if isinstance(name, str) else ""
    raise RowError(
        "unknown role",
        f"{name!r:.60}{hint or ';'} known are {', '.join(roles)};"
        f" `data.roles: {{{str(name)[:40]}: assistant}}` says what it means",
    )
