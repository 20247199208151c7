"""The roles of a conversation in their order, and what is unusual about it."""

import functools
import itertools

ODD_ORDER = "unusual order of turns"


@functools.lru_cache(maxsize=4096)
def odd_order(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Return what is unusual about the order of ``roles``, in words.

    Args:
        roles: The role of each message: system, developer, user, assistant or tool.
    """
    found = []
    turns = [role for role in roles if role not in ("system", "developer")]
    if turns[:1] == ["assistant"]:
        found.append("first turn from the assistant")
    if turns[-1:] and turns[-1] != "assistant":
        found.append(f"last turn from the {turns[-1]}")
    pairs = list(itertools.pairwise(turns))
    found += [
        f"two {role} turns in a row" for role in ("user", "assistant") if (role,) * 2 in pairs
    ]
    if any(after == "tool" and before == "user" for before, after in pairs) or turns[:1] == [
        "tool"
    ]:
        found.append("tool result without a call")
    late = itertools.dropwhile(lambda role: role in ("system", "developer"), roles)
    if any(role in ("system", "developer") for role in late):
        found.append("system message after the first turn")
    return tuple(found)
