"""SFTDataModule: files of records in, batches and an exact position out."""

import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerBase

from peft_lightning.data.batching import (
    Batch,
    BatchPlan,
    flat_collate,
    padded_collate,
    prompt_collate,
)
from peft_lightning.data.cache import TokenizedDataset, default_cache_dir, tokenized
from peft_lightning.data.loader import BatchLoader
from peft_lightning.data.prompts import assign_adapters, read_prompts
from peft_lightning.data.resume import resume_point
from peft_lightning.data.sources import Record, Source
from peft_lightning.data.splits import Split, hold_out, listed, open_split
from peft_lightning.data.templates import load_template
from peft_lightning.data.tokenization import Encoder
from peft_lightning.data.tokenizer import load_tokenizer
from peft_lightning.messages import check_choice

VERBS = {"train": "train on", "val": "validate on", "test": "test on"}


class SFTDataModule(L.LightningDataModule):
    """Data for supervised fine-tuning, tokenised once and batched without padding.

    A path is a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub:
    ``owner/name``, ``owner/name:config``, ``owner/name[split]``.

    Args:
        train: Path of the training rows, several, or several with weights (how often an epoch
            shows each row: 2 is twice, 0.5 a different half each epoch).
        val: Path or paths of the validation rows; without, a part of ``train`` is held out.
        test: Path or paths of the rows for ``test``.
        predict: Path or paths of the rows to generate from; they may lack their answers.
        format: prompt_completion, alpaca, messages, sharegpt, text, the dotted path of your own
            function from a row to messages or text, or auto: told from the columns.
        tokenizer: Hub id or folder of the tokenizer; without, that of the base model.
        chat_template: Path of a Jinja file, or "none" for plain text; without, the tokenizer's own.
        train_on: What the loss is on: assistant (all its turns), last (its last turn), or all.
        max_length: Most tokens of a row; prompts for ``predict`` are never cut.
        truncation: What becomes of longer rows: truncate (the right end, no end marker there), drop
            or error.
        on_bad_row: What a malformed row is: error, or skip (counted by reason).
        val_fraction: Share of the training rows held out if ``val`` is not given, at least one row,
            the same for every seed; 0 for no validation; without, 5 % but at most 1,000 rows, and
            none of fewer than 20.
        batch_size: Rows in a batch of one device.
        tokens_per_batch: Most tokens in a batch, instead of ``batch_size``.
        val_batch_size: Rows in a batch for validate, test and predict; without, as for training.
        layout: flat (rows end to end, no padding) or padded, for models that cannot take flat.
        shuffle: Whether training rows are in another random order each epoch.
        seed: Decides that order; without, that of seed_everything.
        num_workers: Processes that read batches ahead; 0 is fast enough for text.
        cache_dir: Folder for tokenised rows; without, ~/.cache/peft_lightning/tokens.
        allow_changed_data: Whether a checkpoint may go on with other data than it was made with.

    Attributes:
        tokenizer: The tokenizer, after ``setup``.
        data_hash: Hash of all that decides the tokens of the rows, after ``setup``.
        sizes: Rows, tokens and tokens in the loss for each of train, val, test.
        predict_records: The rows of ``predict``, as read.
        answerers: Names of the adapters for ``predict``, to be set before it; a row's ``adapter``
            says which one answers it, and without each does. None for the trained one.
    """

    def __init__(
        self,
        train: str | list[str] | dict[str, float] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        format: str = "auto",
        tokenizer: str | None = None,
        chat_template: str | None = None,
        train_on: str = "assistant",
        max_length: int = 1024,
        truncation: str = "truncate",
        on_bad_row: str = "error",
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
    ) -> None:
        super().__init__()
        check_choice("layout", layout, ("flat", "padded"))
        check_choice("on_bad_row", on_bad_row, ("error", "skip"))
        if val_fraction is not None and not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
        weights = train.values() if isinstance(train, dict) else []
        if any(weight <= 0 for weight in weights):
            raise ValueError(f"a source's weight must be above 0, got {train}")
        self.paths: dict[str, Any] = {"train": train, "val": val, "test": test, "predict": predict}
        self.format = "messages" if format == "chat" else format
        self.tokenizer_name, self.chat_template = tokenizer, chat_template
        self.encoding = (train_on, max_length, truncation)
        self.on_bad_row, self.val_fraction = on_bad_row, val_fraction
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.val_batch_size, self.layout = val_batch_size, layout
        self.shuffle, self.num_workers = shuffle, num_workers
        self._seed = seed
        self.cache_dir = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
        self.allow_changed_data = allow_changed_data
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.data_hash: str | None = None
        self.sizes: dict[str, dict[str, int]] = {}
        self.predict_records: list[Record] = []
        self._splits: dict[str, Split] = {}
        self.answerers: list[str] | None = None
        self._prompts: list[tuple[int, list[int]]] = []
        self._train_plan: BatchPlan | None = None
        self._train_loader: BatchLoader | None = None
        self._resumed: tuple[int, int] | None = None
        self._renumbered: int | None = None  # what Lightning is to take for the finished batches

    def setup(self, stage: str) -> None:
        """Tokenise, or open what was tokenised, all that ``stage`` needs."""
        self.tokenizer = self.tokenizer or self._load_tokenizer()
        stage = TrainerFn(stage).value
        needed = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,))
        for name in needed:
            if name == "predict":
                self._read_prompts()
            elif name not in self._splits:
                self._open(name, stage)
        self.sizes = {name: split.sizes for name, split in self._splits.items()}
        self.data_hash = _hash(self._facts())
        if stage == "fit":
            self._train_plan = self._plan("train")
            self._train_loader = self._resumed = self._renumbered = None

    @property
    def seed(self) -> int:
        """What decides the order of the training rows."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self._seed is None else self._seed

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        module: Any = self.trainer.lightning_module if self.trainer else None
        if self.tokenizer_name is not None:
            own: Any = self.tokenizer_name  # from Python it may be the tokenizer itself
            if not isinstance(own, PreTrainedTokenizerBase):
                own = load_tokenizer(own)
            if hasattr(module, "extend_tokenizer"):
                module.extend_tokenizer(own)
            return own
        if not hasattr(module, "load_tokenizer"):
            raise ValueError(
                "no tokenizer: give data.tokenizer a hub id or a folder (without, it is that of"
                " the base model of the module that is trained)"
            )
        tokenizer = module.load_tokenizer()
        if self.chat_template is not None:  # so that its sample answers and predictions use it too
            tokenizer.chat_template = load_template(tokenizer, self.chat_template)
        return tokenizer

    def _open(self, name: str, stage: str) -> None:
        paths = self.paths[name]
        if paths is not None:
            self._splits[name] = open_split(paths, self._tokenized)
        elif name != "val" or self.paths["train"] is None:
            raise ValueError(f"no data to {VERBS[name]}: give data.{name} a file")
        if name == "test" or self.paths["val"] is not None:
            return
        whole = self._splits.get("train") or open_split(self.paths["train"], self._tokenized)
        self._splits["train"], val, said = hold_out(whole, self.val_fraction)
        if val is not None:
            self._splits["val"] = val
        elif stage == "validate":
            raise ValueError(f"no data to {VERBS[name]}: {said}")
        if name == ("val" if stage == "validate" else "train") and self.val_fraction != 0:
            rank_zero_info(said)

    @property
    def token_sources(self) -> list[TokenizedDataset]:
        """The tokenised sources that were opened, each once."""
        parts: list[Any] = [part for s in self._splits.values() for part in s.dataset.datasets]
        return list({part.folder: part for part in parts}.values())

    def _encoder(self) -> Encoder:
        assert self.tokenizer is not None
        return Encoder(self.tokenizer, self.chat_template, *self.encoding)

    def _tokenized(self, source: Source) -> TokenizedDataset:
        return tokenized(
            source, self._encoder(), self.format, self.on_bad_row, self.cache_dir, rank_zero_info
        )

    def _read_prompts(self) -> None:
        if self.paths["predict"] is None:
            raise ValueError("no data to predict: give data.predict a file")
        self.predict_records, self._prompts = read_prompts(
            listed(self.paths["predict"]),
            self._encoder(),
            self.format,
            self.on_bad_row,
            rank_zero_info,
        )

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches of this rank; a resumed run's start where it stopped."""
        self._train_loader = self._loader("train")
        if self._resumed is not None:
            self._train_loader.resume(*self._resumed)
        return self._train_loader

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation batches of this rank; none without validation rows."""
        return self._loader("val") if "val" in self._splits else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches of this rank."""
        return self._loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Return prompts to generate from, padded on the left, with their records' ``index``.

        Each batch is for one of ``answerers``, named by its ``adapter``.
        """
        rank, world_size = self._rank()
        size = self.val_batch_size or self.batch_size
        tasks = assign_adapters(self.predict_records, self.answerers)
        prompts: list[Any] = []
        batches: list[Any] = []
        for name in dict.fromkeys(name for _, name in tasks):
            mine = [(*self._prompts[row], name) for row, by in tasks if by == name][
                rank::world_size
            ]
            places = np.arange(len(prompts), len(prompts) + len(mine))
            batches += [places[i : i + size] for i in range(0, len(places), size)]
            prompts += mine
        collate = functools.partial(prompt_collate, pad_id=self._pad_id())
        return BatchLoader(prompts, lambda _: batches, len(batches), collate)

    def _plan(self, name: str, **options: Any) -> BatchPlan:
        """Return which rows of a split form which batch; ``options`` replace those of this run."""
        split, training = self._splits[name], name == "train"
        own_size = self.val_batch_size if not training else None
        given: dict[str, Any] = {
            "batch_size": own_size or self.batch_size,
            "tokens_per_batch": None if own_size else self.tokens_per_batch,
            "padded": self.layout == "padded",
            "shuffle": self.shuffle
            and training
            and not getattr(self.trainer, "overfit_batches", 0),
            "seed": self.seed,
            "world_size": self._rank()[1],
        }
        return BatchPlan(split.lengths, split.shares, **(given | options))

    def _loader(self, name: str) -> BatchLoader:
        training = name == "train"
        planned = self._train_plan if training else None
        plan = self._plan(name) if planned is None else planned
        rank, world_size = self._rank()
        collate: Callable[[Any], Batch] = flat_collate
        if self.layout == "padded":
            collate = functools.partial(padded_collate, pad_id=self._pad_id())
        batches = functools.partial(plan.of_rank, rank=rank)
        length = len(plan) // world_size
        before_epoch = self._before_epoch if training else None
        dataset = self._splits[name].dataset
        return BatchLoader(dataset, batches, length, collate, self.num_workers, before_epoch)

    def _before_epoch(self, epoch: int) -> None:
        """Correct Lightning where a run with ``max_steps`` resumes from the end of an epoch.

        It takes the epoch for an unfinished one then, trains one more batch in it and counts it
        twice; with ``max_epochs`` it does not. It calls ``set_epoch`` in time to be corrected.
        """
        cut, done = self._resumed or (epoch, 0)
        self._resumed = None
        if cut < epoch and 0 < done < sys.maxsize:
            rank_zero_info(
                f"epoch {cut} was stopped at batch {done}, which Lightning takes for its end:"
                f" training goes on with epoch {epoch}"
            )
        fit_loop = self.trainer.fit_loop if self.trainer else None
        if fit_loop is not None and self._renumbered is not None:
            _renumber(fit_loop.epoch_loop.batch_progress.current, self._renumbered)
        self._renumbered = None
        if fit_loop is None or not fit_loop.restarting:
            return
        progress: Any = fit_loop.epoch_progress
        if progress.current.ready == progress.current.processed:
            if progress.current.completed < progress.current.processed:
                progress.increment_completed()
            setter: Any = _Loop.restarting  # the fit loop's own would set it to True
            setter.fset(fit_loop, False)
            fit_loop.reset_restart_stage()
            fit_loop.epoch_loop.reset_restart_stage()

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _pad_id(self) -> int:
        """Return what fills up rows; the mask hides it, so EOS or 0 do as well."""
        assert self.tokenizer is not None
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(i for i in ids if i is not None)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data: the epoch, and how many of its batches are finished.

        The loader knows which epoch its batches are of; the trainer knows how many of those that
        it was handed are trained on. The smaller number holds, whatever was read ahead: it is
        exact within an epoch, on its last batch, and between epochs, where one of the two is
        still the last epoch's.
        """
        loader = self._train_loader
        if loader is None:
            return {}
        position, batches = loader.position, float(len(loader))
        if self.trainer is not None:
            fit_loop = self.trainer.fit_loop
            progress: Any = fit_loop.epoch_loop.batch_progress.current
            position = min(position, progress.processed)
            batches = min(batches, fit_loop.max_batches)  # limit_train_batches
        assert self._train_plan is not None
        epoch, rows = self._train_plan.finished
        return {
            "epoch": loader.epoch,
            "position": position,
            "batches": int(batches),
            "rows_before": rows if epoch == loader.epoch else 0,
            "batching": self._batching(),
            "limited": self._limited(),
            "data": self._facts(),
            "data_hash": self.data_hash,
            "files": self._files(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the position in ``state``, also with another number of ranks or batch size.

        Raises:
            ValueError: If the data is other than it was, or, within an epoch, what the order of
                its rows depends on.
        """
        if not state or (self.trainer and self.trainer.state.fn != TrainerFn.FITTING):
            return
        now: dict[str, Any] = {"data": self._facts(), "data_hash": self.data_hash}
        now |= {"files": self._files(), "batching": self._batching(), "limited": self._limited()}
        epoch, position, changed = resume_point(state, now, self.allow_changed_data)
        assert self._train_plan is not None
        if position < sys.maxsize:
            if changed:
                position = self._renumbered = self._move(state)
            elif state["rows_before"]:
                self._train_plan.resume_at(epoch, state["rows_before"])
        elif now["batching"] != state["batching"] or now["data"] != state["data"]:
            self._renumbered = len(self._train_plan) // self._rank()[1]
        self._resumed = epoch, position
        if self._train_loader is not None:  # made early, by trainer.estimated_stepping_batches
            self._train_loader.resume(*self._resumed)

    def _move(self, state: dict[str, Any]) -> int:
        """Let the epoch of ``state`` go on in other batches; return the position of the first."""
        assert self._train_plan is not None
        epoch, batching = state["epoch"], state["batching"]
        ranks = batching["number of ranks"]
        old = self._plan("train", batch_size=batching["batch_size"], world_size=ranks)
        if state["rows_before"]:
            old.resume_at(epoch, state["rows_before"])
        rows = old.rows_before(epoch, state["position"])
        rank_zero_info(
            f"{rows} rows of epoch {epoch} are finished, by {ranks} process(es) in batches of"
            f" {batching['batch_size']}; the others follow in the same order, by {self._rank()[1]}"
            f" in batches of {self.batch_size}"
        )
        return self._train_plan.resume_at(epoch, rows)

    def _limited(self) -> bool:
        """Whether an epoch is not all of the rows."""
        return getattr(self.trainer, "limit_train_batches", None) not in (None, 1.0)

    def _batching(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "tokens_per_batch": self.tokens_per_batch,
            "shuffle": self.shuffle,
            "layout": self.layout,
            "number of ranks": self._rank()[1],
        }

    def _facts(self) -> dict[str, Any]:
        """Return what decided the tokens of each split, for the hash and to compare."""
        facts: dict[str, Any] = {name: split.facts for name, split in self._splits.items()}
        fraction = "auto" if self.val_fraction is None else self.val_fraction
        return {**facts, "val_fraction": None if self.paths["val"] else fraction}

    def _files(self) -> str:
        return ", ".join(self._splits["train"].names)


def _hash(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _renumber(progress: Any, finished: int) -> None:
    """Let Lightning's count of an epoch's batches be ``finished``, wherever it was saved."""
    open_hook = progress.processed - progress.completed  # 1 if saved in on_train_batch_end
    progress.ready = progress.started = progress.processed = finished
    progress.completed = finished - open_hook
