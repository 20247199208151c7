"""What a user may say about the data: how records are read, tokenized and batched."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft_lightning.messages import UserError, check_choice

ON_BAD_ROW = ("error", "skip")
TRAIN_ON = ("assistant", "last", "all")
TRUNCATION = ("drop", "truncate", "error")
REASONING = ("train", "mask", "drop", "error")
SPECIAL_TOKENS_IN_TEXT = ("encode", "keep", "error")
LAYOUTS = ("flat", "padded")
SYSTEM = ("keep", "merge_into_user", "drop")


@dataclass(frozen=True)
class RowOptions:
    """How records are read from files and turned into conversations or text.

    Args:
        format: "auto", the name of a format, or the dotted path of a user's function.
        on_bad_row: "error", or "skip" to leave malformed rows out and count them by reason.
        columns: Columns of the format, each with the column of the file that stands for it, such as
            ``{"prompt": "question"}``.
        roles: Names of roles in the files, each with the role that is meant.
        prompt: A template of the prompt with columns in braces, "Question: {question}".
        system_prompt: The system message of conversations that have none.
        encoding: Encoding of text files; None for UTF-8.
        max_rows: Maximum number of rows read of each source; None for all.

    Raises:
        UserError: If an option has a value that it cannot have.
    """

    format: str = "auto"
    on_bad_row: str = "error"
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    system_prompt: str | None = None
    encoding: str | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        check_choice("on_bad_row", self.on_bad_row, ON_BAD_ROW)
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"max_rows must be at least 1, got {self.max_rows}")


@dataclass(frozen=True)
class TokenOptions:
    """How conversations and text become token ids and weights.

    Args:
        train_on: The turns in the loss: "assistant" for all of the assistant's, "last" for its last
            one, "all" for every token.
        max_length: Maximum number of tokens of a row, at least 2.
        truncation: What to do with a longer row: "drop" leaves it out, "truncate" cuts its right
            end and adds no EOS token, "error" raises.
        reasoning: What to do with the thoughts of the assistant, which are ``reasoning_content`` of
            a message or stand between ``<think>`` and ``</think>`` at the beginning of its content.
            "train" trains each as the template prints it, and is an error where it prints none;
            with "mask" a thought is context, and the loss begins with what closes it; "drop"
            removes thoughts from the messages; "error" refuses rows with thoughts.
        special_tokens_in_text: What a special token in the text of a row is: "encode" makes it
            ordinary text, "keep" the token itself, "error" refuses the row. An end-of-turn token
            at the end of an answer is that of the turn in any case.
        system: What to do with system messages: "keep", "merge_into_user" puts them before the
            first user's message, for templates that take none, "drop" removes them.
        chat_template_kwargs: Variables of the chat template; those of a row win.
        template_date: The date, YYYY-MM-DD, that templates print as today's; None for today.

    Raises:
        UserError: If an option has a value that it cannot have.
    """

    train_on: str = "assistant"
    max_length: int = 1024
    truncation: str = "drop"
    reasoning: str = "train"
    special_tokens_in_text: str = "encode"
    system: str = "keep"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = "2024-07-26"

    def __post_init__(self) -> None:
        check_choice("train_on", self.train_on, TRAIN_ON)
        check_choice("truncation", self.truncation, TRUNCATION)
        check_choice("reasoning", self.reasoning, REASONING)
        check_choice("special_tokens_in_text", self.special_tokens_in_text, SPECIAL_TOKENS_IN_TEXT)
        check_choice("system", self.system, SYSTEM)
        if self.max_length < 2:
            raise UserError(f"max_length must be at least 2, got {self.max_length}")


@dataclass(frozen=True)
class BatchOptions:
    """How rows are grouped into batches.

    Args:
        batch_size: Rows per batch and device.
        tokens_per_batch: Maximum tokens per batch, instead of ``batch_size``.
        val_batch_size: Rows per batch in validate, test and predict; None for as in training.
        layout: "flat" (rows concatenated, no padding) or "padded".
        shuffle: Whether training rows are in another random order each epoch.
        num_workers: Processes that read batches ahead.
        name_sources: Whether training batches name the source of each of their rows.

    Raises:
        UserError: If an option has a value that it cannot have.
    """

    batch_size: int = 8
    tokens_per_batch: int | None = None
    val_batch_size: int | None = None
    layout: str = "flat"
    shuffle: bool = True
    num_workers: int = 0
    name_sources: bool = False

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)
