"""The loaders of a rank: which batches of which rows it gets, and how they become tensors."""

import functools
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Trainer
from transformers import PreTrainedModel

from peft_lightning.data.batching import BatchPlan
from peft_lightning.data.collate import Batch, flat_collate, padded_collate, prompt_collate
from peft_lightning.data.loader import BatchLoader
from peft_lightning.data.options import BatchOptions
from peft_lightning.data.per_source import batches_of_rank
from peft_lightning.data.prompts import Prompt, prompt_batches
from peft_lightning.data.split import Split
from peft_lightning.messages import SharedError, UserError


class Loaders:
    """Makes the loaders of a rank.

    Args:
        options: How rows are grouped into batches.
        seed: Seed of the order of the training rows.
        pad_id: Token id of the padding.
        trainer: Says which rank this is; without, torch.distributed does, if it is used.
        collate_fn: Makes a batch from tokenized rows; None for that of the layout.

    Raises:
        UserError: If the trainer's module would compute another loss on flat batches.
    """

    def __init__(
        self,
        options: BatchOptions,
        seed: int,
        pad_id: int,
        trainer: Trainer | None,
        collate_fn: Callable[..., Any] | None = None,
    ) -> None:
        self.options, self.seed, self.pad_id = options, seed, pad_id
        self.collate_fn = collate_fn
        self.rank, self.world_size = (0, 1)
        if trainer is not None:
            self.rank, self.world_size = trainer.global_rank, trainer.world_size
            if options.layout == "flat":
                _require_flat(trainer.lightning_module)
        elif (
            torch.distributed.is_available() and torch.distributed.is_initialized()
        ):  # Fabric, a plain loop
            self.rank, self.world_size = (
                torch.distributed.get_rank(),
                torch.distributed.get_world_size(),
            )
        self.overfits = bool(getattr(trainer, "overfit_batches", 0))

    def plan(self, split: Split, training: bool) -> BatchPlan:
        """Return which rows of a split form which batch."""
        options = self.options
        val_batch_size = None if training else options.val_batch_size
        return BatchPlan(
            split.lengths,
            split.sources,
            batch_size=val_batch_size or options.batch_size,
            tokens_per_batch=None if val_batch_size else options.tokens_per_batch,
            padded=options.layout == "padded",
            shuffle=options.shuffle and training and not self.overfits,
            seed=self.seed,
            world_size=self.world_size,
        )

    def rows(self, split: Split, plan: BatchPlan, names: Sequence[str] = ()) -> BatchLoader:
        """Return the batches of this rank.

        Args:
            split: The rows.
            plan: Which of them form which batch.
            names: Names of the sources, for batches of one source each, with its name as
                ``source``; empty for batches that mix sources.
        """
        collate: Callable[[Any], Batch] = self.collate_fn or flat_collate
        if self.collate_fn is None and self.options.layout == "padded":
            collate = functools.partial(padded_collate, pad_id=self.pad_id)
        batches, length, names = batches_of_rank(plan, self.rank, names)
        workers = self.options.num_workers
        of_row = split.source_of() if self.options.name_sources and not names else None
        loader = BatchLoader(split.dataset, batches, length, collate, workers, names, of_row)
        if self.options.tokens_per_batch is None and not self.overfits:
            loader.dataset = split.dataset  # with it, Lightning would make another for overfitting
        return loader

    def prompts(self, prompts: Sequence[Prompt], tasks: Sequence[tuple[int, Any]]) -> BatchLoader:
        """Return prompts padded on the left, with the ``index`` of their records.

        Args:
            prompts: The prompt of each record.
            tasks: Pairs (record, adapter) of ``assign_adapters``. All prompts of a batch are for
                the same adapter, named by its ``adapter``.
        """
        size = self.options.val_batch_size or self.options.batch_size
        examples, batches = prompt_batches(prompts, tasks, size, self.rank, self.world_size)
        collate = functools.partial(prompt_collate, pad_id=self.pad_id)
        return BatchLoader(examples, lambda _: batches, len(batches), collate)


def _require_flat(module: Any) -> None:
    """Raise UserError if a module of one's own would give flat batches to a model as they are.

    Without our attention the sequences of a batch see each other, and nothing fails.
    """
    if hasattr(module, "nll") or getattr(module, "takes_flat_batches", False):
        return
    if module is not None and any(isinstance(m, PreTrainedModel) for m in module.modules()):
        raise UserError(
            f"{type(module).__name__} would get flat batches, whose sequences see each other in a "
            "model's own forward: give SFTDataModule(layout='padded'), or set takes_flat_batches "
            "= True in its class if it keeps them apart"
        )


def require_equal_data(data_hash: str) -> None:
    """Check that all processes of a run have the same rows, as those of files are.

    Raises:
        UserError: In every process, if they differ.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, (socket.gethostname(), data_hash))
    (node, ours), *others = found
    for rank, (other_node, theirs) in enumerate(others, start=1):
        if theirs == ours:
            continue
        raise SharedError(
            f"process {rank} on {other_node} has other rows than the first one on {node} (hash "
            f"{theirs:.12}, not {ours:.12}): give all nodes the same files; a stream or a list "
            "must give the same rows in the same order in every process, so seed what shuffles it"
        )
