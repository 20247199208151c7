"""Flags that say what is in the loss: of turns, of parts of their content, and of whole rows."""

import math
from collections.abc import Mapping
from typing import Any

from peft_lightning.data.records import DroppedRowError, Record, RowError
from peft_lightning.data.rows.json_text import parse_json

# OpenAI: weight; axolotl: train, training; ms-swift: loss, loss_scale; torchtune: masked
INCLUDING = ("weight", "loss_weight", "loss_scale", "loss", "train", "training", "trainable")
EXCLUDING = ("mask", "masked", "ignore")
TURN_FLAGS = frozenset(("loss_mask", *INCLUDING, *EXCLUDING))
ROW_WEIGHTS = ("weight", "sample_weight", "loss_weight", "loss_scale")
ROW_FLAGS = frozenset((*ROW_WEIGHTS, "train", "training", "trainable"))
LABELS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's names in KTO data

_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def parse_flag(name: str, value: Any) -> float:
    """Return the weight in the loss that a flag gives: 0 for what is not in it.

    Args:
        name: The flag; ``EXCLUDING`` ones are true for what is not in the loss.
        value: True, false, a number, or one of these as text.

    Raises:
        RowError: If the value is something else, negative or not finite.
    """
    if isinstance(value, (bool, int, float)):
        number = _float(value)
    elif isinstance(value, str):
        word = value.strip().lower()
        number = _WORDS[word] if word in _WORDS else _float(word)
    else:
        number = math.nan
    if not 0 <= number < math.inf or (name in EXCLUDING and number not in (0, 1)):
        right = "true or false" if name in EXCLUDING else "true, false or a number of at least 0"
        raise RowError("a flag of the loss has no meaning", f"{name}: {value!r:.60}; write {right}")
    return 1 - number if name in EXCLUDING else number


def combined_weight(flags: Mapping[str, Any]) -> float | None:
    """Return the weight in the loss that several flags give together; None without flags.

    Args:
        flags: Flags and their values; null is no flag.

    Raises:
        RowError: If one flag excludes from the loss what another one includes, or if two give
            different weights.
    """
    weights = {name: parse_flag(name, v) for name, v in flags.items() if v is not None and v != ""}
    if not weights:
        return None
    included = {name: weight for name, weight in weights.items() if weight}
    amounts = {weight for weight in included.values() if weight != 1}
    if len(included) not in (0, len(weights)) or len(amounts) > 1:
        raise contradiction({name: flags[name] for name in weights})
    return 0.0 if not included else next(iter(amounts), 1.0)


def contradiction(flags: Mapping[str, Any]) -> RowError:
    """Return the error of flags that contradict each other."""
    shown = " and ".join(f"{name}: {value!r:.40}" for name, value in flags.items())
    return RowError("contradicting flags of the loss", f"{shown}; keep the one that is meant")


def parse_loss_mask(value: Any, num_messages: int) -> list[Any]:
    """Return a row's ``loss_mask``, which has a flag for each message.

    Raises:
        RowError: If it is not a list of that length.
    """
    mask = parse_json(value, "loss_mask")
    if not isinstance(mask, list) or len(mask) != num_messages:
        got = f"{len(mask)} values" if isinstance(mask, list) else type(mask).__name__
        raise RowError(
            "loss_mask does not fit the messages",
            f"{got} for {num_messages} messages; write a list with 0 or 1 for each message",
        )
    return mask


def row_weight(record: Record, columns: frozenset[str]) -> float:
    """Return the factor on the weights of a row's tokens, above 0.

    Args:
        record: The row.
        columns: Those of its columns that may be flags.

    Raises:
        DroppedRowError: If a flag or KTO's label says that the row is not to be trained on.
        RowError: If the flags contradict each other or have no meaning.
    """
    flags = {n: record[n] for n in sorted(ROW_FLAGS & columns) if n in record}
    weight = combined_weight(flags) if flags else None
    if weight == 0:
        raise DroppedRowError("weight 0", f"the row's {' and '.join(flags)} say so")
    for name in LABELS:
        if name in columns and is_label(record.get(name)) and not parse_flag(name, record[name]):
            raise DroppedRowError(
                f"{name} is false", "in KTO data: an answer that is not to be learned"
            )
    return 1.0 if weight is None else weight


def is_label(value: Any) -> bool:
    """Whether ``value`` can be KTO's label: whether the answer is a good one."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "false", "0", "1")
    return isinstance(value, (bool, int)) and value in (0, 1)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
