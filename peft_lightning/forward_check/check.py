"""ForwardCheck: a model is run in the fastest way that computes what its own forward does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from peft_lightning.forward_check.memory import file_of, recall, remember
from peft_lightning.forward_check.probes import Batch, boundaries, longest_of, rows_of
from peft_lightning.forward_check.search import Logits, Losses, Search
from peft_lightning.forward_check.ways import Way, arranged
from peft_lightning.kernels.own_forward import evaluating, own_forward


@dataclass(frozen=True)
class Found:
    """What has been found out about batches of one layout.

    Args:
        way: How they are run.
        boundary: Rows up to this length are computed right, longer ones have not been looked at;
            None if all are.
        reasons: Why each faster way is not taken.
        loss: How the model's own loss differs from ours, if it does.
    """

    way: Way
    boundary: int | None
    reasons: list[str]
    loss: str | None

    @classmethod
    def read(cls, kept: dict[str, Any] | None) -> Found | None:
        """Return what was kept as JSON; None if that is not whole."""
        try:
            return None if kept is None else cls(**{**kept, "way": Way(**kept["way"])})
        except (KeyError, TypeError):
            return None

    def covers(self, longest: int) -> bool:
        """Whether rows of this length are known to be computed right."""
        return self.boundary is None or longest <= self.boundary


class ForwardCheck:
    """Compares a model with its own untouched forward, on rows of the run, and chooses the way.

    The fastest way is taken whose logits for short sequences, end to end or padded, are those that
    the model's own attention and layers compute for each sequence alone, and in which no token sees
    a later one. When a row is first longer than a length at which, by the config, something changes
    (a window, a chunk, a number of keys), a sequence of such a length is compared too.

    What is found is remembered: with the model, and on disk if it is known which base it is.

    Args:
        model: A causal LM of transformers.
        logits: Computes its logits, (N, V), before the labelled tokens of a batch, as it is now.
        losses: Computes the model's own mean loss of a padded batch, and ours.
    """

    def __init__(self, model: Any, logits: Logits, losses: Losses) -> None:
        self.model, self.logits, self.losses = model, logits, losses
        self.own = own_forward(model)
        self._shared: bool | None = None  # whether each forward pass takes all processes

    def arranged(self, batch: Batch, adapter: Any) -> list[Batch]:
        """Let the model compute in the way for ``batch``, and return the parts to give it in turn.

        Args:
            batch: Flat or padded, with labels or without.
            adapter: The one that is attached to the model now; None for none.

        Raises:
            UserError: If no way computes what the model's own forward does, or that lets tokens see
                those that they are to predict.
        """
        layout = "flat" if "seq_lens" in batch else "padded"
        key, longest = (layout, type(adapter).__name__), longest_of(batch)
        found: Found | None = self.own.checked.get(key)
        if found is None or found.boundary is not None:
            longest, process = self._longest(longest)
            if found is None or not found.covers(longest):
                rows = self._of(process, rows_of(batch))
                found = self._found(found, rows, longest, adapter, layout)
                self.own.checked[key] = found
        self.own.use(found.way.attention, found.way.layers)
        return arranged(batch, found.way.layout)

    def _longest(self, longest: int) -> tuple[int, int]:
        """Return the longest row of the batches that are computed together, and whose it is.

        Where layers are sharded these are the batches of all processes, which then look at the same
        rows: each forward pass takes all of them.
        """
        if self._shared is None:
            sharded = any(hasattr(p, "device_mesh") for p in self.model.parameters())
            self._shared = sharded and torch.distributed.get_world_size() > 1
        if not self._shared:
            return longest, 0
        found: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, longest)
        return max(found), found.index(max(found))

    def _of(self, process: int, value: Any) -> Any:
        """Return what a process has, if all go on with the same; else what this one has."""
        if not self._shared:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=process, device=self.model.device)
        return _moved(box[0], self.model.device)

    @torch.no_grad()
    def _found(
        self, before: Found | None, rows: list[Tensor], longest: int, adapter: Any, layout: str
    ) -> Found:
        """Recall or find out what is not known yet; say it if it is not the fastest way."""
        known = [n for n in boundaries(self.model) if n < longest]
        with self.own.using(False, False):
            file = file_of(self.model, self.own, layout, adapter)
            found = Found.read(self._of(0, recall(file)))
            if found is None or not found.covers(longest):
                virtual = getattr(adapter, "num_virtual_tokens", 0)
                with evaluating(self.model):
                    search = Search(self.model, self.own, self.logits, rows, virtual)
                    way, reasons = search.run(layout, known[-1] if known else None)
                    loss = search.other_loss(self.losses) if before is None else before.loss
                ahead = [n for n in boundaries(self.model) if n >= longest]
                found = Found(way, ahead[0] if ahead else None, reasons, loss)
                remember(file, asdict(found))
        said = list(self.own.checked.values())
        if found.reasons and all(other.way != found.way for other in said):
            rank_zero_info(self._line(found))
        if found.loss and all(other.loss != found.loss for other in said):
            rank_zero_info(found.loss)
        return found

    def _line(self, found: Found) -> str:
        """Return what is said of a way that is not the fastest."""
        way, own = found.way, f" ({self.own.attention_name})"
        named = own if way.attention or not self.own.has_ours else ""
        return (
            f"{type(self.model).__name__} is given {way}{named}: only so does it compute what its "
            f"own forward does for a row alone ({'; '.join(found.reasons)})"
        )


def _moved(value: Any, device: torch.device) -> Any:
    return [each.to(device) for each in value] if isinstance(value, list) else value
