"""Single tokens' rows of an embedding, trained: HF PEFT's ``trainable_token_indices``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.adapters.lora.embedding import is_embedding, lookup_scale
from peft_lightning.messages import UserError, did_you_mean


class TokenRows(nn.Module):
    """Rows that stand for those of an embedding: new values, not differences.

    Args:
        ids: Of the tokens, each once.
        rows: (len(ids), dim), their initial values; kept in float32 (float64 for float64).
    """

    ids: Tensor
    place: Tensor

    def __init__(self, ids: Sequence[int], rows: Tensor) -> None:
        super().__init__()
        rows = rows.detach().to(adapter_dtype(rows.dtype), copy=True)
        self.trainable_tokens_delta = nn.Parameter(rows)
        known = torch.tensor(list(ids), device=rows.device)
        place = torch.full((max(ids) + 1,), -1, device=rows.device)
        place[known] = torch.arange(len(ids), device=rows.device)
        self.register_buffer("ids", known, persistent=False)
        self.register_buffer("place", place, persistent=False)  # id -> row, -1 if it has none


class TrainableTokensLayer(nn.Module):
    """An embedding, or a linear output embedding, with some of its rows trained.

    Ids from the base's number of rows on enlarge the vocabulary; the base's own weight is never
    copied, so taking this out gives it back with the vocabulary it had. A row that is not looked
    up costs nothing.

    Args:
        base_layer: The frozen embedding or linear layer, (V, dim). Kept, not copied.
        token_adapter: The rows.
        is_tied: Whether they are those of the input embedding, which owns them.
    """

    def __init__(
        self, base_layer: nn.Module, token_adapter: TokenRows, is_tied: bool = False
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.token_adapter = token_adapter
        self.is_tied = is_tied
        self.extra = max(0, len(token_adapter.place) - len(self.weight))  # rows beyond the base's

    @property
    def weight(self) -> Tensor:
        """The base's weight; some models look at their layers'."""
        return cast(Tensor, self.base_layer.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast(Tensor | None, getattr(self.base_layer, "bias", None))

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The trained rows' ids, (n,), and values, (n, dim)."""
        return self.token_adapter.ids, self.token_adapter.trainable_tokens_delta

    @property
    def num_embeddings(self) -> int:
        return len(self.weight) + self.extra

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by their names in the layer; none if another owns them."""
        name, rows = "token_adapter.trainable_tokens_delta", self.token_adapter
        return {} if self.is_tied else {name: rows.trainable_tokens_delta}

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base_layer, nn.Embedding):
            return self._look_up(x)
        ids, rows = self.rows
        logits = F.pad(self.base_layer(x), (0, self.extra))
        own = F.linear(x, rows.to(x.dtype))
        if self.bias is not None:
            own = own + self.bias[ids]
        return logits.index_copy(-1, ids, own.to(logits.dtype))

    def _look_up(self, ids: Tensor) -> Tensor:
        place, rows = self.token_adapter.place, self.token_adapter.trainable_tokens_delta
        base = self.base_layer(ids.clamp(max=len(self.weight) - 1) if self.extra else ids)
        row = place[ids.clamp(max=len(place) - 1)]
        row = row.masked_fill(ids >= len(place), -1)
        own = F.embedding(row.clamp(min=0), rows).to(base.dtype) * lookup_scale(self.base_layer)
        return torch.where((row >= 0)[..., None], own.to(base.dtype), base)

    def extra_repr(self) -> str:
        return f"tokens={len(self.token_adapter.ids)}, new={self.extra}"


def find_tokens(
    model: nn.Module,
    wanted: Sequence[int] | Mapping[str, Sequence[int]],
    new: Sequence[int],
    saved: Collection[str],
    tie: bool,
    loading: bool = False,
) -> tuple[dict[str, list[int]], str | None]:
    """Return the ids to train of each module by name, and the module tied to the input embedding.

    Args:
        model: Without an adapter.
        wanted: Ids of the input embedding; or by ends of modules' names, as in HF PEFT.
        new: Ids of new tokens, for the input and the output embedding.
        saved: Names of modules that are trained whole: their new rows are within them.
        tie: ``ensure_weight_tying``: whether a tied output embedding must share the rows.
        loading: Whether the rows come from a file: then other ids may add to the vocabulary too.

    Returns:
        The ids, and the name of an output embedding that shares the input embedding's rows.

    Raises:
        UserError: If a name meets no embedding, an id is not there, or a tied output embedding
            is given other ids than the input embedding and ``tie`` is set.
    """
    source, head = vocabulary_names(model)
    ends = [name for name in (source, head) if name]
    given = wanted if isinstance(wanted, Mapping) else {source: wanted} if wanted else {}
    found: dict[str, list[int]] = {}
    for key, ids in given.items():
        names = [n for n, m in model.named_modules() if n.endswith(key) and _has_rows(m)]
        if not names:
            raise UserError(
                f"trainable_token_indices names {key!r}, and there is no such embedding; there are "
                f"{' and '.join(ends)}" + did_you_mean(key, ends)
            )
        found |= {name: list(ids) for name in names}
    shared = is_tied(model)
    if shared and (source in found or new) and not {source, head} & set(saved):
        first = found.get(source, [])
        shared = found.get(str(head), first) == first
        if tie and not shared:
            raise UserError(
                f"ensure_weight_tying needs the same trainable_token_indices of {source} and "
                f"{head}, got {first} and {found[str(head)]}"
            )
    else:
        shared = False
    if shared:
        found.pop(str(head), None)
        ends = [source]
    for name in ends if new else []:
        if name not in saved:
            found[name] = [*found.get(name, []), *(i for i in new if i not in found.get(name, []))]
    for name, ids in found.items():
        _check_ids(name, ids, model.get_submodule(name), ids if loading else new)
    return found, head if shared else None


def vocabulary_names(model: nn.Module) -> tuple[str, str | None]:
    """Return the names of the input and the output embedding."""
    source, head = (
        getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")
    )
    names = {id(module): name for name, module in model.named_modules()}
    return names.get(id(source), "embed_tokens"), names.get(id(head)) if head is not None else None


def is_tied(model: nn.Module) -> bool:
    """Whether input and output embedding of a model without an adapter are one weight."""
    source, head = vocabulary_names(model)
    if head is None:
        return False
    weights = [getattr(model.get_submodule(name), "weight", None) for name in (source, head)]
    return weights[0] is not None and weights[0] is weights[1]


def _has_rows(module: nn.Module) -> bool:
    return is_embedding(module) or type(module) is nn.Linear


def _check_ids(name: str, ids: Sequence[int], module: nn.Module, new: Collection[int]) -> None:
    if not ids or any(type(i) is not int or i < 0 for i in ids) or len(set(ids)) < len(ids):
        raise UserError(
            f"trainable_token_indices must be tokens' ids, each once, got {list(ids)!r}"
        )
    size = len(cast(Tensor, module.weight))
    beyond = sorted(i for i in ids if i >= size)
    if beyond != list(range(size, size + len(beyond))) or set(beyond) - set(new):
        raise UserError(
            f"trainable_token_indices {beyond} are beyond the {size} rows of {name}: tokens that "
            "the base does not have are added by new_tokens"
        )
    if beyond and getattr(module, "bias", None) is not None:
        raise UserError(f"{name} has a bias, which has no value for new tokens: {beyond}")
