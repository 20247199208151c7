"""SFTDataModule: from files of records to batches, with a position that a run resumes from.

A training batch passes four files on its way to ``CausalLMModule.nll``: the loader (``loader.py``)
takes the row indices of the batch from its plan (``batching.py``), reads these rows
(``tokenized_dataset.py``) and concatenates them (``collate.py``).
"""

import functools
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from peft_lightning.data.answer_rows import AnswerRow, answer_rows
from peft_lightning.data.cache import default_cache_dir, load_or_tokenize
from peft_lightning.data.description import describe_rows
from peft_lightning.data.example_rows import example_rows
from peft_lightning.data.files.in_hand import NamedRows, Rows, TrainRows, in_hand
from peft_lightning.data.loader import BatchLoader
from peft_lightning.data.loaders import Loaders, require_equal_data
from peft_lightning.data.mixing import read_mixture
from peft_lightning.data.options import BatchOptions, RowOptions, TokenOptions
from peft_lightning.data.prompt_format import PromptFormat
from peft_lightning.data.prompts import Prompt, assign_adapters, read_prompts
from peft_lightning.data.records import Record
from peft_lightning.data.resume import TrainingPosition
from peft_lightning.data.rows.format_functions import format_name
from peft_lightning.data.split import Split, Tokenize, data_state
from peft_lightning.data.splits import check_val_fraction, open_splits
from peft_lightning.data.tokenized_dataset import TokenizedDataset
from peft_lightning.data.tokens.marked_tokens import MarkedRow
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.data.tokens.tokenizer import padding_id, tokenizer_for
from peft_lightning.data.trained_prompts import left_out, prompt_format_of, use_prompt_format
from peft_lightning.data.tunable import TunableBatches
from peft_lightning.hyperparameters import PlainHyperparameters

DATE_NOTICE = "the chat template prints today's date: in rows it is data.template_date, {}"


class SFTDataModule(TunableBatches, PlainHyperparameters, L.LightningDataModule):
    """Data for supervised fine-tuning, tokenized once and batched without padding.

    docs/data-rows.md and docs/data-files.md say which rows and files are read.

    Args:
        train: Path of the training rows, several (one given twice is read twice), or several with
            numbers: shares of an epoch if they sum to 1, else see ``mix``.
        val: Path of the validation rows, several, or names with paths, each with its own loss in
            the logs; without, the same part of each source of ``train`` is held out.
        test: Path of the rows for ``test``, several, or names with paths.
        predict: Path or paths of the rows to generate from; completions may be missing.
        format: prompt_completion, alpaca, messages, sharegpt, text, the dotted path of your own
            function from a row to messages or text, or auto: detected from the columns.
        columns: Columns of the format, and those of the file that are meant: {prompt: question}.
        roles: Names of roles in the file and what they mean: {bot: assistant}.
        prompt: Template of the prompt, with columns in braces: "Question: {question}".
        system_prompt: System message of the conversations that have none.
        encoding: Encoding of text files; without, UTF-8.
        max_rows: Maximum number of rows read of each source.
        max_train_rows: Maximum number of rows of each source to train on. They are a random choice
            that no seed changes; those of validation stay.
        tokenizer: Hub id or folder of the tokenizer; without, that of the base model.
        chat_template: Path of a Jinja file, or "none" for plain text; without, the tokenizer's own.
        chat_template_kwargs: Variables of the chat template: {enable_thinking: false}.
        template_date: Date, YYYY-MM-DD, that a chat template prints as today's.
        train_on: Turns in the loss: assistant (all of its turns), last (its last turn), or all.
        reasoning: Thoughts of the assistant: train, mask (no loss), drop (left out), or error.
        special_tokens_in_text: Special tokens in the text of rows: encode (as text), keep or error.
        system: System messages: keep, merge_into_user (if the template takes none), or drop.
        max_length: Maximum tokens of a row; prompts for ``predict`` are never truncated.
        truncation: Of longer rows: drop (counted), truncate (the right end, no EOS) or error.
        on_bad_row: What to do with malformed rows: error, or skip (counted by reason).
        mix: What the numbers of ``train`` are: share (of the rows of an epoch), rows (per epoch),
            repeat (how often each row occurs), or auto: share if they sum to 1, else repeat.
        stopping_strategy: Of shares: all_exhausted (every row at least once) or first_exhausted.
        val_fraction: Fraction of the training rows held out without ``val``, the same for every
            seed; 0 for none; by default 5 % but at most 1,000 rows, and none of fewer than 20.
        batch_size: Rows per batch and device.
        tokens_per_batch: Maximum tokens per batch, instead of ``batch_size``.
        val_batch_size: Rows per batch in validate, test and predict; without, as in training.
        layout: flat (rows concatenated, no padding) or padded, for models that cannot take flat.
        shuffle: Whether training rows are in another random order each epoch.
        seed: Seed of that order; without, that of seed_everything.
        num_workers: Processes that read batches ahead; text needs none.
        cache_dir: Folder for tokenized rows; without, ~/.cache/peft_lightning/tokens.
        allow_changed_data: Whether a checkpoint may be resumed with other data.
        collate_fn: Makes a batch of tokenized rows; without, by ``layout``.
        name_sources: Whether training batches name the source of each row. It is the stem of the
            file, in ``sources``.

    Attributes:
        tokenizer: The tokenizer, after ``setup``.
        data_hash: Hash of everything that determines the tokens of the rows, after ``setup``.
        sizes: Rows, tokens, tokens in the loss and of the longest row, of train, val, test.
        predict_records: The rows of ``predict``, as read.
        predict_prompts: For each of them its index and the token ids of its prompt.
        predict_references: The token ids of its own answer, None without one.
        prompt_format: How the prompts of the rows are made, after ``setup``; a checkpoint keeps it.
        predict_adapters: Names of the adapters that ``predict`` generates with, set before it; see
            ``assign_adapters``. None for the trained adapter.
    """

    row_arguments = frozenset({"train", "val", "test", "predict"})

    def __init__(
        self,
        train: TrainRows | None = None,
        val: NamedRows | None = None,
        test: NamedRows | None = None,
        predict: Rows | None = None,
        format: str = "auto",
        columns: dict[str, str] | None = None,
        roles: dict[str, str] | None = None,
        prompt: str | None = None,
        system_prompt: str | None = None,
        encoding: str | None = None,
        max_rows: int | None = None,
        max_train_rows: int | None = None,
        tokenizer: str | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        template_date: str = "2024-07-26",
        train_on: str = "assistant",
        reasoning: str = "train",
        special_tokens_in_text: str = "encode",
        system: str = "keep",
        max_length: int = 1024,
        truncation: str = "drop",
        on_bad_row: str = "error",
        mix: str = "auto",
        stopping_strategy: str | None = None,
        val_fraction: float | None = None,
        batch_size: int = 8,
        tokens_per_batch: int | None = None,
        val_batch_size: int | None = None,
        layout: str = "flat",
        shuffle: bool = True,
        seed: int | None = None,
        num_workers: int = 0,
        cache_dir: str | None = None,
        allow_changed_data: bool = False,
        collate_fn: Callable[..., Any] | None = None,
        name_sources: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        given = {"train": train, "val": val, "test": test, "predict": predict}
        self.paths = {name: in_hand(v, f"data.{name}", max_rows) for name, v in given.items()}
        check_val_fraction(val_fraction)
        self.mixture = read_mixture(self.paths["train"], mix, stopping_strategy, max_train_rows)
        self.row_options = RowOptions(
            *(format_name(format), on_bad_row, columns or {}, roles or {}, prompt, system_prompt),
            *(encoding, max_rows),
        )
        self.token_options = TokenOptions(
            *(train_on, max_length, truncation, reasoning, special_tokens_in_text, system),
            *(chat_template_kwargs or {}, template_date),
        )
        self.batch_options = BatchOptions(
            *(batch_size, tokens_per_batch, val_batch_size, layout, shuffle, num_workers),
            name_sources,
        )
        self.tokenizer_name = tokenizer
        self.chat_template = None if chat_template is None else str(chat_template)
        self.val_fraction, self._seed = val_fraction, seed
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.allow_changed_data, self.collate_fn = allow_changed_data, collate_fn
        self.tokenizer: Any = None
        self._tokenizer_of: Any = None  # a weak reference to the module that it is for
        self.data_hash: str | None = None
        self.sizes: dict[str, dict[str, int]] = {}
        self.predict_records: list[Record] = []
        self.predict_prompts: list[Prompt] = []
        self.predict_references: list[list[int] | None] = []
        self.predict_adapters: list[str] | None = None
        self.prompt_format: PromptFormat | None = None
        self._splits: dict[str, Split] = {}
        self._data_state: dict[str, Any] = {}
        self._position: TrainingPosition | None = None

    def setup(self, stage: str) -> None:
        """Tokenize the rows that ``stage`` needs, or load their tokens from the cache."""
        stage = TrainerFn(stage).value
        module = self.trainer.lightning_module if self.trainer else None
        if self.prompt_format is None and (trained := getattr(module, "prompt_format", None)):
            if stage != "fit":
                self.use_prompt_format(trained)
            elif left := left_out(self, trained):
                rank_zero_info(f"the adapter of model.init_from was trained with {left}")
        row_tokenizer = self.row_tokenizer(module)
        self.prompt_format = prompt_format_of(self, row_tokenizer)
        if row_tokenizer.date:
            rank_zero_info(DATE_NOTICE.format(row_tokenizer.date))
        if stage == "predict":
            self.predict_records, self.predict_prompts, self.predict_references = read_prompts(
                self.paths["predict"], row_tokenizer, self.row_options, log=rank_zero_info
            )
        tokenize = functools.partial(
            load_or_tokenize,
            row_tokenizer=row_tokenizer,
            options=self.row_options,
            cache_dir=self.cache_dir,
            log=rank_zero_info,
        )
        self._splits = self.open_splits(stage, tokenize, rank_zero_info)
        self.sizes = {name: split.sizes for name, split in self._splits.items()}
        self._data_state = data_state(self._splits, self.paths["val"], self.val_fraction)
        self.data_hash = str(self._data_state["data_hash"])
        require_equal_data(self.data_hash)
        if stage == "fit":
            self._position = TrainingPosition(self._loaders().plan(self._splits["train"], True))
            for line in describe_rows(self._splits, self.tokenizer, self.token_options.max_length):
                rank_zero_info(line)
            steps = getattr(self.trainer, "accumulate_grad_batches", 1)
            rank_zero_info(self._position.plan.summary(steps))

    def use_prompt_format(self, trained: PromptFormat, given: list[str] | None = None) -> None:
        """Make the prompts of ``predict`` as an adapter's; see ``trained_prompts.py``."""
        if taken := use_prompt_format(self, trained, given):
            rank_zero_info(f"prompts as the adapter was trained with: {taken}")

    def row_tokenizer(self, module: Any) -> RowTokenizer:
        """Return what tokenizes the rows, with the tokenizer of ``module`` if no other is given."""
        is_new = self._tokenizer_of is not None and self._tokenizer_of() is not module
        if self.tokenizer is None or is_new:
            self.tokenizer = tokenizer_for(module, self.tokenizer_name, self.chat_template)
            self._splits = {}  # whose tokens were another's
            self._tokenizer_of = (lambda: None) if module is None else weakref.ref(module)
        return RowTokenizer(self.tokenizer, self.chat_template, self.token_options)

    def open_splits(
        self, stage: str, tokenize: Tokenize, log: Callable[[str], None]
    ) -> dict[str, Split]:
        """Return the splits that ``stage`` needs, and those that are open already."""
        args = (tokenize, log, self._splits, self.mixture, self.row_options.encoding)
        return open_splits(stage, self.paths, self.val_fraction, *args)

    def example_rows(self, number: int) -> list[MarkedRow]:
        """Return rows to train on, of each source about as many, with their tokens in the loss."""
        train = self._splits.get("train")
        return [] if train is None else example_rows(train, self.tokenizer, number)

    @property
    def seed(self) -> int:
        """The seed of the order of the training rows."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed

    @property
    def splits(self) -> dict[str, Split]:
        """The rows of train, val and test, after ``setup``: those that its stage needs."""
        return self._splits

    @property
    def tokenized_datasets(self) -> list[TokenizedDataset]:
        """The tokenized sources of the open splits, each once."""
        return list({p.folder: p for s in self._splits.values() for p in s.parts}.values())

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches of this rank; a resumed run starts where it stopped."""
        split, loaders = self._splits["train"], self._loaders()
        position = self._position = self._position or TrainingPosition(loaders.plan(split, True))
        loader = loaders.rows(split, position.plan)
        loader.before_epoch = lambda epoch: position.before_epoch(epoch, self.trainer)
        position.attach(loader)
        return loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation batches of this rank; none without validation rows."""
        return self._evaluation("val") if "val" in self._splits else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches of this rank."""
        return self._evaluation("test")

    def predict_dataloader(self) -> BatchLoader:
        """Return the prompts of this rank, all of a batch for the same adapter."""
        tasks = assign_adapters(self.predict_records, self.predict_adapters)
        return self._loaders().prompts(self.predict_prompts, tasks)

    def answer_rows(self, name: str, limit: int = 0) -> list[AnswerRow]:
        """Return rows of val or test with what precedes their answers; see ``answer_rows.py``."""
        return answer_rows(self._splits[name], limit) if name in self._splits else []

    def _evaluation(self, name: str) -> BatchLoader:
        split, loaders = self._splits[name], self._loaders()
        return loaders.rows(split, loaders.plan(split, False), split.labels)

    def _loaders(self) -> Loaders:
        pad_id, collate = padding_id(self.tokenizer), self.collate_fn
        return Loaders(self.batch_options, self.seed, pad_id, self.trainer, collate)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training rows, and what it depends on, as plain values."""
        if self._position is None or self._position.loader is None:
            return {}
        return self._position.state_dict(self.trainer) | self._data_state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the position in ``state``; see ``TrainingPosition.load_state_dict``."""
        if not state or (self.trainer and self.trainer.state.fn != TrainerFn.FITTING):
            return
        assert self._position is not None
        now, changed = self._data_state, self.allow_changed_data
        self._position.load_state_dict(state, now, changed, self.trainer)
