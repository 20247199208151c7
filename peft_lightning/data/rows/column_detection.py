"""Columns that stand for those of a format: named by the user, in another case, or by custom."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Record
from peft_lightning.data.rows.column_paths import root_of
from peft_lightning.data.rows.formats import COMPLETION_COLUMNS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS
from peft_lightning.data.rows.loss_flags import LABELS, ROW_WEIGHTS
from peft_lightning.messages import UserError, did_you_mean

PROMPTS = ("prompt", "question", "query", "input")
COMPLETIONS = ("completion", "answer", "response", "output")
ALIASES = {"system": "system_prompt", "conversations": "conversation"}
# columns without which a question may not be what it was
CONTEXTS = (
    *("context", "passage", "document", "article", "paragraph", "story", "body", "background"),
    *("choices", "options", "premise", "hypothesis", "facts", "table", "schema", "hint"),
)
CLASSES = ("category", "class", "intent", "sentiment", "emotion", "topic", "rating", "stars")
# columns beside `text` that say that it is not all
BESIDE_TEXT = frozenset(
    (
        *(*PROMPTS, *COMPLETIONS, *LABELS, *CLASSES),
        *("labels", "label_text", "target", "summary", "instruction", "chosen"),
    )
)
PREFERENCE = ("rejected", "rejected_response")
_COLUMNS = dict.fromkeys(  # those that data.columns may name
    itertools.chain(
        *REQUIRED_COLUMNS.values(),
        *OPTIONAL_COLUMNS.values(),
        (*LABELS, *ROW_WEIGHTS, "chat_template_kwargs"),
    )
)


def named_columns(
    found: Sequence[str], source: str, options: RowOptions, prompts_only: bool
) -> dict[str, str]:
    """Return the columns that the user names and their names in the source.

    Raises:
        UserError: If a column of no format or no column of the source is named.
    """
    required = {column for columns in REQUIRED_COLUMNS.values() for column in columns}
    for column, name in options.columns.items():
        if column not in _COLUMNS:
            raise UserError(
                f"data.columns: no format has a column {column!r}; there are"
                f" {', '.join(_COLUMNS)}{did_you_mean(column, _COLUMNS)}"
            )
        is_there = root_of(str(name), found) in found
        if not is_there and not (prompts_only and column in COMPLETION_COLUMNS.values()):
            raise UserError(
                f"{source}: data.columns says that {column} is {name!r}, but the columns are"
                f" {list(found)}{did_you_mean(str(name), found)}"
                + ", or write null where a row has none"
                * (column not in required)
            )
    if options.prompt and not {"prompt"}.isdisjoint(options.columns):
        raise UserError("data.prompt and data.columns both give the prompt: leave one of them out")
    return _renamings(options.columns)


def other_case(present: set[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Return columns of formats that the source writes in another case or as an alias."""
    folded = {name.strip().lower(): name for name in sorted(present - set(mapping))}
    found = {}
    columns = (*REQUIRED_COLUMNS.values(), *OPTIONAL_COLUMNS.values(), LABELS)
    for column in itertools.chain(*columns):
        names = [column, *([ALIASES[column]] if column in ALIASES else [])]
        source = next((folded[name] for name in names if name in folded), None)
        if source is not None and column not in present:
            found[column] = source
    return found


def prompt_and_completion(
    present: set[str], source: str, prompts_only: bool, only: str | None = None
) -> tuple[str, dict[str, str]] | None:
    """Return the format of columns that are usually a prompt and its completion, and the columns.

    Args:
        present: The columns of the source, under the names of the formats where they are known.
        source: The source's name, for the message.
        prompts_only: Whether the completion may be missing.
        only: The only format that is asked for, if any.

    Returns:
        The name of the format, and its columns that have another name in the source; None if there
        is no such pair.

    Raises:
        UserError: If there are several of a kind, or others without which they mean less.
    """
    folded = {name.strip().lower(): name for name in sorted(present)}
    prompts = [folded[name] for name in PROMPTS if name in folded]
    answers = [folded[name] for name in COMPLETIONS if name in folded]
    if not answers and not prompts_only:
        return None
    if "instruction" in folded and only in (None, "alpaca") and len(answers) <= 1:
        output = {"output": answers[0]} if answers else {}
        return "alpaca", _renamings({"instruction": folded["instruction"]} | output)
    if only not in (None, "prompt_completion"):
        return None
    if "instruction" in folded and only == "prompt_completion":
        prompts = [folded["instruction"]]
    if prompts_only and "prompt" in present and not answers:
        return "prompt_completion", {}
    if not prompts:
        return None
    others = [folded[name] for name in CONTEXTS if name in folded]
    if len(prompts) > 1 or len(answers) > 1 or others:
        fields = " ".join(f"{{{name}}}" for name in (*others, prompts[0]))
        answer = answers[0] if answers else "NAME"
        raise UserError(
            f"{source}: which of the columns {sorted(present)} are the prompt and the completion?"
            f" Write `data.columns: {{prompt: {prompts[0]}, completion: {answer}}}`, or make the"
            f' prompt of several columns with `data.prompt: "{fields}"` and'
            f" `data.columns: {{completion: {answer}}}`"
        )
    completion = {"completion": answers[0]} if answers else {}
    return "prompt_completion", _renamings({"prompt": prompts[0]} | completion)


def context_of_instruction(present: set[str]) -> dict[str, str]:
    """Return the column that stands for alpaca's input in Dolly's rows: the context."""
    folded = {name.strip().lower(): name for name in present}
    return {"input": folded["context"]} if "context" in folded and "input" not in present else {}


def _renamings(columns: Mapping[str, str]) -> dict[str, str]:
    return {column: name for column, name in columns.items() if column != name}


def completion_of_template(present: set[str], source: str) -> dict[str, str]:
    """Return the column that is the completion of prompts made by ``data.prompt``.

    Raises:
        UserError: If it is not clear which.
    """
    if "completion" in present:
        return {}
    answers = [name for name in sorted(present) if name.strip().lower() in COMPLETIONS]
    if len(answers) == 1:
        return {"completion": answers[0]}
    raise UserError(
        f"{source}: data.prompt makes prompts; `data.columns: {{completion: NAME}}` says which of"
        f" the columns {sorted(present - {'prompt'})} is the completion"
    )


def refuse_preferences(record: Record, source: str) -> None:
    """Refuse rows that are pairs of a chosen and a rejected answer.

    Raises:
        UserError: If the row is one; says which columns to train on.
    """
    rejected = next((name for name in PREFERENCE if name in record), None)
    if rejected is None:
        return
    chosen = next((name for name in ("chosen", "response", "output") if name in record), "chosen")
    answer: Any = record.get(chosen)
    starts = answer[0] if isinstance(answer, list) and answer else {}
    whole = isinstance(starts, dict) and starts.get("role", starts.get("from")) in ("user", "human")
    if whole or not {"prompt", "instruction"} & set(record):
        columns = f"{{messages: {chosen}}}"
    elif "prompt" in record:
        columns = f"{{prompt: prompt, completion: {chosen}}}"
    else:
        columns = f"{{instruction: instruction, output: {chosen}}}"
    raise UserError(
        f"{source}: rows with {rejected!r} are pairs of answers, for preference tuning. Write"
        f" `data.columns: {columns}` to train on the chosen answers, or name the columns or the"
        f" `data.format` that is meant; the columns are {list(record)}"
    )
