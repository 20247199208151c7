"""Data formats: each is one function from a record to a ``Conversation`` or ``PlainText``."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from peft_lightning.data.records import Finding, Record, RowError
from peft_lightning.data.rows.content import parse_content
from peft_lightning.data.rows.conversations import (
    Conversation,
    PlainText,
    Row,
    has_system,
    with_system,
)
from peft_lightning.data.rows.json_text import parse_json
from peft_lightning.data.rows.loss_flags import TURN_FLAGS, combined_weight
from peft_lightning.data.rows.roles import ROLES
from peft_lightning.data.rows.text_values import (
    as_text,
    require_column,
    require_not_empty,
    require_text,
)
from peft_lightning.data.rows.tool_calls import parse_tools
from peft_lightning.data.rows.turn_lists import parse_turns
from peft_lightning.data.rows.turns import ROLE_KEYS

# the prompt template of the Alpaca data (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca)
ALPACA_TEMPLATE = (
    "Below is an instruction that describes a task{}. Write a response that appropriately"
    " completes the request.\n\n### Instruction:\n{}\n\n{}### Response:\n"
)

Format = Callable[..., Row]  # of a record, and of names of roles as ``roles_with`` returns them


def prompt_completion(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Columns ``prompt`` and ``completion``, text or messages; the loss is on the completion."""
    prompt, completion = require_column(record, "prompt"), require_column(record, "completion")
    findings: list[Finding] = []
    before, answer = _as_turns(prompt), _as_turns(completion)
    if before is None:
        prompt = as_text(prompt, "prompt", findings)
    if answer is None:
        completion = require_not_empty(as_text(completion, "completion", findings), "completion")
    if before is None and answer is None:
        return _single_turn(record, prompt, completion, prompt, findings)
    if before and record.get("history"):
        raise RowError("history beside a list of messages", "put its turns into the prompt")
    before = before or [*_history(record), {"role": "user", "content": prompt}]
    answer = answer or [{"role": "assistant", "content": completion}]
    row = parse_turns([*before, *answer], roles, record.get("loss_mask"), len(before))
    return _with_context(replace(row, findings=(*findings, *row.findings)), record)


def alpaca(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Columns ``instruction``, ``output``, perhaps ``input``; the loss is on the output."""
    findings: list[Finding] = []
    instruction = require_text(record, "instruction", findings)
    output = require_not_empty(require_text(record, "output", findings), "output")
    input_text = record.get("input")
    input_text = "" if input_text is None else as_text(input_text, "input", findings)
    if not input_text or input_text.isspace():
        plain = ALPACA_TEMPLATE.format("", instruction, "")
        return _single_turn(record, instruction, output, plain, findings)
    context = ", paired with an input that provides further context"
    plain = ALPACA_TEMPLATE.format(context, instruction, f"### Input:\n{input_text}\n\n")
    prompt = f"{instruction}\n\n{input_text}" if instruction.strip() else input_text
    return _single_turn(record, prompt, output, plain, findings)


def messages(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Column ``messages``, of ``{role, content}``; the loss is on the assistant's turns."""
    return _turns_of(record, "messages", roles)


def sharegpt(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Column ``conversations``, of ``{from, value}``; the loss is on the assistant's turns."""
    return _turns_of(record, "conversations", roles)


def segments(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Column ``segments``, of ``{text, label}``; the loss is on those whose label is true."""
    pieces = parse_json(require_column(record, "segments"), "segments")
    if not isinstance(pieces, list) or not pieces:
        right = "write [{'text': ..., 'label': false}, {'text': ..., 'label': true}]"
        raise RowError("segments are not a list of segments", f"got {pieces!r:.40}; {right}")
    weighted: list[tuple[str, float]] = []
    findings: list[Finding] = []
    for piece in pieces:
        if not isinstance(piece, dict) or piece.get("text") is None:
            raise RowError(
                "a segment without text", f"{piece!r:.60}; write {{'text': ..., 'label': true}}"
            )
        flags = {key: value for key, value in piece.items() if key in TURN_FLAGS or key == "label"}
        weight = combined_weight(flags)
        if weight is None:
            raise RowError("a segment without a label", "write 'label': true for what is trained")
        weighted.append((as_text(piece["text"], "text", findings), weight))
        findings += [Finding("unused key", k) for k in piece if k != "text" and k not in flags]
    if not any(text and weight for text, weight in weighted):
        raise RowError("no segment in the loss", "write 'label': true for what is trained")
    return PlainText(weighted, tuple(findings))


def text(record: Record, roles: Mapping[str, str] = ROLES) -> Row:
    """Column ``text``; the loss is on all of it."""
    findings: list[Finding] = []
    whole = require_not_empty(require_text(record, "text", findings), "text")
    return PlainText([(whole, 1.0)], tuple(findings))


FORMATS: dict[str, Format] = {
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "messages": messages,
    "sharegpt": sharegpt,
    "segments": segments,
    "text": text,
}
REQUIRED_COLUMNS = {  # a format is detected by these
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "segments": ("segments",),
    "text": ("text",),
}
_CONTEXT = ("system", "tools", "functions")
_BESIDE = (*_CONTEXT, "history", "reasoning_content", "loss_mask")
OPTIONAL_COLUMNS = {
    "prompt_completion": _BESIDE,
    "alpaca": ("input", *_BESIDE),
    "messages": (*_CONTEXT, "loss_mask"),
    "sharegpt": (*_CONTEXT, "loss_mask"),
    "segments": (),
    "text": (),
}
COMPLETION_COLUMNS = {"prompt_completion": "completion", "alpaca": "output"}
TURN_COLUMNS = {"messages": "messages", "sharegpt": "conversations"}


def _turns_of(record: Record, column: str, roles: Mapping[str, str]) -> Conversation:
    turns = require_column(record, column)
    mask = record.get("loss_mask")
    return _with_context(parse_turns(turns, roles, mask), record)


def _single_turn(
    record: Record, prompt: str, answer: str, plain_prompt: str, findings: list[Finding]
) -> Conversation:
    """Return a question and its answer, after the row's history."""
    user = {"role": "user", "content": prompt}
    assistant = {"role": "assistant", "content": answer}
    plain = PlainText([(plain_prompt, 0.0), (answer, 1.0)])
    if record.keys().isdisjoint(_BESIDE):
        return Conversation([user, assistant], plain=plain, findings=tuple(findings))
    if (thought := record.get("reasoning_content")) not in (None, ""):
        assistant["reasoning_content"] = as_text(thought, "reasoning_content", findings)
    history = _history(record)
    row = parse_turns([*history, user, assistant], loss_mask=record.get("loss_mask"))
    row = replace(row, findings=(*findings, *row.findings))
    if not history and row.weights is None and "reasoning_content" not in assistant:
        row = replace(row, plain=plain)
    return _with_context(row, record)


def _as_turns(value: Any) -> list[Any] | None:
    """Return the turns of a prompt or completion; None if it is text."""
    if isinstance(value, dict) and not value.keys().isdisjoint(ROLE_KEYS):
        return [value]
    if isinstance(value, list) and any(isinstance(turn, dict) for turn in value):
        return value
    return None


def _history(record: Record) -> list[dict[str, Any]]:
    """Return the turns of LLaMA-Factory's column ``history``: pairs of a prompt and its answer."""
    pairs = record.get("history")
    if isinstance(pairs, str) and pairs.lstrip().startswith("["):
        pairs = parse_json(pairs, "history")
    if pairs in (None, "", []):
        return []
    if not isinstance(pairs, list):
        pairs = [pairs]
    turns = []
    for pair in pairs:
        if not isinstance(pair, list) or [type(item) for item in pair] != [str, str]:
            raise RowError(
                "history is not a list of pairs",
                f"{pair!r:.60}; write [[prompt, answer], ...], or make it part of the prompt with"
                " data.prompt",
            )
        turns += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    return turns


def _with_context(row: Conversation, record: Record) -> Conversation:
    """Add what columns beside the turns say: the tools, and the system message."""
    if record.keys().isdisjoint(_CONTEXT):
        return row
    if tools := parse_tools(record.get("tools"), record.get("functions")):
        row = replace(row, tools=tools, plain=None)
    system = record.get("system")
    if system in (None, "", []):
        return row
    findings: list[Finding] = []
    if isinstance(system, list):
        system = parse_content(system, findings).text
    content = as_text(system, "system", findings)
    if not content.strip():
        return row
    if has_system(row):
        first = next(message for message in row.messages if message["role"] == "system")
        if first["content"] != content:
            raise RowError(
                "two system messages", "the column 'system' and the system turn differ; keep one"
            )
        return row
    return replace(with_system(row, content), findings=(*row.findings, *findings))
