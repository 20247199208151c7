"""From a record to a row: the columns of its format, the format, and what the whole row says."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache, lru_cache

from peft_lightning.data.options import RowOptions
from peft_lightning.data.records import Finding, Record, RowError
from peft_lightning.data.rows.column_paths import root_of, unread_beside
from peft_lightning.data.rows.columns import PromptTemplate, renamed
from peft_lightning.data.rows.conversations import (
    Conversation,
    PlainText,
    Row,
    has_system,
    scaled,
    with_system,
)
from peft_lightning.data.rows.format_detection import ResolvedFormat, detect_format
from peft_lightning.data.rows.formats import (
    COMPLETION_COLUMNS,
    FORMATS,
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
)
from peft_lightning.data.rows.loss_flags import LABELS, ROW_FLAGS, is_label, row_weight
from peft_lightning.data.rows.prompt_records import with_placeholder, without_completion
from peft_lightning.data.rows.roles import roles_with
from peft_lightning.data.rows.template_kwargs import TEMPLATE_KWARGS, with_template_kwargs
from peft_lightning.data.rows.user_formats import load_user_format
from peft_lightning.messages import UserError

_ROW_COLUMNS = frozenset((*ROW_FLAGS, *LABELS, *TEMPLATE_KWARGS))

_unused_column = lru_cache(lambda name: Finding("unused column", name))


class RowParser:
    """Turns the records of a source into rows.

    Everything a record says is read, or an error, or a finding: a column that nothing reads is the
    finding "unused column".

    Args:
        resolved: The format of the source.
        options: The columns, roles, prompt template and system message that the user names.

    Raises:
        UserError: If a role, the template or the function does not exist.
    """

    def __init__(self, resolved: ResolvedFormat, options: RowOptions) -> None:
        self.resolved = resolved
        self.system_prompt = options.system_prompt
        self.roles = roles_with(options.roles)
        self.template = PromptTemplate(options.prompt) if options.prompt else None
        self._read = dict.fromkeys(resolved.columns.values()).keys()
        if self.template:
            self._read = dict.fromkeys([*self._read, *self.template.columns]).keys()
        self.user_format = None
        if resolved.name not in FORMATS:
            self.user_format = load_user_format(resolved.name)
            if options.columns or options.prompt:
                raise UserError(
                    f"data.columns and data.prompt are for the formats {', '.join(FORMATS)}; the"
                    f" function {resolved.name} returns the columns itself"
                )
        elif self.template and resolved.name != "prompt_completion":
            raise UserError(
                f"data.prompt makes the prompt of prompt_completion rows, these are"
                f" {resolved.name}; write `data.columns: {{completion: NAME}}` for the completion"
            )

    def row(self, record: Record) -> Row:
        """Return the row of ``record``.

        Raises:
            RowError: If the record is malformed; a ``DroppedRowError`` if it says that it is not to
                be trained on.
            UserError: If a user's function returns what is no row.
        """
        try:
            return self._parse(record, prompts_only=False)
        except RecursionError:
            raise RowError("nested too deeply", "write it with fewer lists in lists") from None

    def prompt(self, record: Record) -> Row:
        """Return the row of ``record`` without its completion, which may be missing.

        Flags of the loss are not read. A last message from the assistant is the start of the
        completion that the row's prompt gives.

        Raises:
            RowError: If the rest of the record is malformed.
            UserError: If a user's function returns what is no row.
        """
        try:
            return without_completion(self._parse(record, prompts_only=True))
        except RecursionError:
            raise RowError("nested too deeply", "write it with fewer lists in lists") from None

    def _parse(self, record: Record, prompts_only: bool) -> Row:
        if self.user_format is None:
            row = self._parse_columns(record, self.resolved, prompts_only)
            return self._with_system_prompt(row)
        result = self.user_format(record)
        if not isinstance(result, (Conversation, PlainText)):
            names = tuple(key for key in result if isinstance(key, str))
            resolved = _detected(names, self.resolved.name, prompts_only)
            result = self._parse_columns(result, resolved, prompts_only)
        return self._with_system_prompt(result)

    def _parse_columns(self, record: Record, resolved: ResolvedFormat, prompts_only: bool) -> Row:
        findings: list[Finding] = []
        name, columns, flags, known = resolved.name, record, *_columns_of(resolved.name)
        if resolved.columns:
            optional = COMPLETION_COLUMNS.get(name, "") if prompts_only else ""
            columns = renamed(record, resolved.columns, optional)
            findings += _replaced(record, resolved.columns)
        if not prompts_only and not record.keys() >= self._read:
            findings += unread_beside(record, self._read)
        if self.template:
            used = frozenset(root_of(column, record) for column in self.template.columns)
            findings += _unused(columns, {"prompt"} - used)
            columns = {**columns, "prompt": self.template.fill(record, findings)}
            flags, known = flags - used, known | used
        if prompts_only:
            columns = with_placeholder(columns, name, self.roles)
        row = FORMATS[name](columns, self.roles)
        if not flags.isdisjoint(columns):
            row = scaled(row, 1.0 if prompts_only else row_weight(columns, flags))
            if isinstance(row, Conversation):
                row = with_template_kwargs(row, columns)
            labels = {n for n in LABELS if n in flags and not is_label(columns.get(n))}
            findings += _unused(columns, labels)
        if unread := columns.keys() - known:
            findings += _unused(columns, unread)
        return replace(row, findings=(*row.findings, *findings)) if findings else row

    def _with_system_prompt(self, row: Row) -> Row:
        if self.system_prompt is None:
            return row
        if isinstance(row, PlainText):
            raise RowError(
                "a system prompt for plain text",
                "this row is no conversation; leave data.system_prompt out",
            )
        return row if has_system(row) else with_system(row, self.system_prompt)


@cache
def _columns_of(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the columns of a format that are of the whole row, and all that are read."""
    flags = ROW_FLAGS if name in ("text", "segments") else _ROW_COLUMNS
    return flags, flags | {*REQUIRED_COLUMNS[name], *OPTIONAL_COLUMNS[name]}


@lru_cache
def _detected(columns: tuple[str, ...], function: str, prompts_only: bool) -> ResolvedFormat:
    """Return the format of the dicts with these columns that a user's function returns."""
    name = f"the result of {function}"
    return detect_format(dict.fromkeys(columns), name, prompts_only=prompts_only)


def _unused(record: Record, names: Collection[str]) -> list[Finding]:
    """Return a finding for each of these columns that is not empty."""
    return [_unused_column(n) for n in record if n in names and record[n] not in (None, "", [], {})]


def _replaced(record: Record, columns: Mapping[str, str]) -> list[Finding]:
    """Return a finding for each column that has the name of one for which another one stands."""
    return _unused(record, columns.keys() - columns.values())
