"""Turns of XTuner's form: a question and its answer in one object."""

from collections.abc import Mapping
from typing import Any

from peft_lightning.data.records import RowError
from peft_lightning.data.rows.loss_flags import TURN_FLAGS

PAIR_KEYS = ("system", "input", "output")
WITH_LOSS = "output_with_loss"  # XTuner's flag of the loss


def with_pairs_as_turns(turns: list[Any]) -> list[Any]:
    """Return turns in which each object with an input and an output is a turn of each.

    A system message in it comes first; what is empty is left out. Flags of the loss and other keys
    are the answer's.

    Raises:
        RowError: If an object gives its flag of the loss twice.
    """
    return [turn for value in turns for turn in (_turns(value) if _is_pair(value) else [value])]


def _is_pair(value: Any) -> bool:
    is_turn = isinstance(value, Mapping) and {"role", "from"}.isdisjoint(value)
    return is_turn and not {"input", "output"}.isdisjoint(value)


def _turns(pair: Mapping[str, Any]) -> list[dict[str, Any]]:
    rest = {key: item for key, item in pair.items() if key not in (*PAIR_KEYS, WITH_LOSS)}
    if WITH_LOSS in pair:
        if flags := sorted(TURN_FLAGS & rest.keys()):
            raise RowError("two flags of the loss", f"{WITH_LOSS} and {flags[0]}; keep one")
        rest["train"] = pair[WITH_LOSS]
    turns: list[dict[str, Any]] = [
        {"role": role, "content": pair[key]}
        for role, key in (("system", "system"), ("user", "input"))
        if pair.get(key) not in (None, "")
    ]
    if "output" in pair:
        turns.append({"role": "assistant", "content": pair["output"], **rest})
    elif rest:
        turns[-1:] = [{**turns[-1], **rest}] if turns else []
    return turns
