"""What a LoRA trains beside updates of linear layers: embeddings, whole modules, tokens' rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper, find_saved
from peft_lightning.adapters.lora.trainable_tokens import (
    TokenRows,
    TrainableTokensLayer,
    find_tokens,
    is_tied,
    vocabulary_names,
)
from peft_lightning.adapters.new_tokens import NewTokens, initial_rows
from peft_lightning.messages import shortened

Part = LoRAEmbedding | ModulesToSaveWrapper | TrainableTokensLayer

_SIZE = "_base_vocab_size"  # attribute of a model with new tokens: its size without them


@dataclass(frozen=True)
class Beside:
    """What of a model, still without an adapter, is to be trained beside linear layers.

    Args:
        saved: Modules that are trained whole.
        tokens: Ids whose rows are trained, by the name of an embedding.
        pieces: Of the tokens that are new: id -> the ids that it was made of before.
        tied_rows: Output embedding that shares the rows of the input embedding.
        ends: Names of input and output embedding if they have to stay one weight.
    """

    saved: dict[str, nn.Module]
    tokens: dict[str, list[int]]
    pieces: dict[int, list[int]]
    tied_rows: str | None
    ends: tuple[str, str] | None

    @classmethod
    def find(
        cls,
        model: nn.Module,
        modules_to_save: Sequence[str] | None,
        token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None,
        new_tokens: NewTokens | None,
        ensure_weight_tying: bool,
        loading: bool,
    ) -> Beside:
        """Find it by the options of ``LoRA``, see there, and whether its tensors are loaded next.

        Raises:
            ValueError: If something is not there, or does not go together.
        """
        source, head = vocabulary_names(model)
        ends = (source, head) if ensure_weight_tying and head and is_tied(model) else None
        saved = find_saved(model, modules_to_save) if modules_to_save else {}
        saved = with_both(model, saved, ends)
        wanted = {} if token_ids is None else token_ids
        pieces = {new["id"]: new["pieces"] for new in (new_tokens or {}).values()}
        tokens, tied = find_tokens(model, wanted, list(pieces), saved, ensure_weight_tying, loading)
        return cls(saved, tokens, pieces, tied, ends)

    def with_both(self, model: nn.Module, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Return ``found`` with both embeddings if it has one of them and they stay tied."""
        return with_both(model, found, self.ends)

    def check(self, targets: Collection[str]) -> None:
        """Raise ValueError if a module is to be trained in two ways."""
        rows = {*self.tokens, *([self.tied_rows] if self.tied_rows else [])}
        for names, other in ((targets, "target_modules"), (self.saved, "modules_to_save")):
            if both := [name for name in names if name in rows]:
                raise ValueError(
                    f"{shortened(both)} would be trained twice, by {other} and by "
                    "trainable_token_indices or new_tokens: leave one out"
                )

    def insert(self, model: Any, initialise: bool) -> None:
        """Put the modules and rows into ``model``."""
        module: Any
        for name, module in self.saved.items():
            saved = ModulesToSaveWrapper(module)
            if self.pieces and name in vocabulary_names(model):
                saved.enlarge(initial_rows(module.weight, list(self.pieces), self.pieces))
            model.set_submodule(name, saved)
        if self.ends and self.ends[0] in self.saved:
            first, second = (model.get_submodule(name).modules_to_save for name in self.ends)
            second.weight = first.weight
        for name, ids in self.tokens.items():
            module = model.get_submodule(name)
            rows = module.weight.new_zeros(len(ids), module.weight.shape[1])
            if initialise:
                rows = initial_rows(module.weight, ids, self.pieces)
            model.set_submodule(name, TrainableTokensLayer(module, TokenRows(ids, rows)))
        if self.tied_rows:
            rows_of_both = model.get_input_embeddings().token_adapter
            base = model.get_submodule(self.tied_rows)
            model.set_submodule(
                self.tied_rows, TrainableTokensLayer(base, rows_of_both, is_tied=True)
            )
        sizes = [len(rows.place) for rows in model.modules() if isinstance(rows, TokenRows)]
        sizes += [max(self.pieces) + 1] if self.pieces else []
        if sizes:
            enlarge_vocabulary(model, max(sizes))


def enlarge_vocabulary(model: nn.Module, size: int) -> None:
    """Say that ``model`` has ``size`` tokens, until ``remove_parts``; if that is more than now."""
    if size > vocabulary_size(model):
        if not hasattr(model, _SIZE):
            setattr(model, _SIZE, vocabulary_size(model))
        _set_vocabulary_size(model, size)


def fit_saved(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Enlarge embeddings that are trained whole to the rows that they have in ``tensors``."""
    ends = vocabulary_names(model)
    saved = {
        n: m for n, m in parts(model).items() if isinstance(m, ModulesToSaveWrapper) and n in ends
    }
    shared = len({id(module.modules_to_save.weight) for module in saved.values()}) < len(saved)
    for name, module in saved.items():
        weight = tensors.get(f"base_model.model.{name}.weight")
        if weight is not None and len(weight) > len(module.weight):
            module.enlarge(weight[len(module.weight) :])
            enlarge_vocabulary(model, len(weight))
    if shared:
        first, second = (module.modules_to_save for module in saved.values())
        second.weight = first.weight


def parts(model: nn.Module) -> dict[str, Part]:
    """Return by name what is trained beside linear layers."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Part)}


def part_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of ``parts`` by their names in the model."""
    return {
        f"{n}.{key}": t for n, part in parts(model).items() for key, t in part.tensors().items()
    }


def require_no_parts(model: nn.Module, what: str) -> None:
    """Raise ValueError if ``what`` is to be done with more than updates of linear layers."""
    if found := parts(model):
        raise ValueError(
            f"{what} takes updates of linear layers only, and the adapter trains "
            f"{shortened(list(found))} too: merge it, python -m peft_lightning merge CKPT OUT"
        )


def remove_parts(model: nn.Module) -> None:
    """Put the base's own modules back, and the size of its vocabulary."""
    for name, part in parts(model).items():
        model.set_submodule(name, part.base_layer)
    if hasattr(model, _SIZE):
        _set_vocabulary_size(model, getattr(model, _SIZE))
        delattr(model, _SIZE)


def trained_ids(model: nn.Module, given: Any) -> Any:
    """Return ``trainable_token_indices`` for HF PEFT's file, new tokens among them.

    Args:
        model: With the adapter.
        given: The option; returned as it is if it names all.
    """
    owners = {n: p for n, p in parts(model).items() if isinstance(p, TrainableTokensLayer)}
    ids = {n: p.token_adapter.ids.tolist() for n, p in owners.items() if not p.is_tied}
    total = {i for some in ids.values() for i in some}
    named = given.values() if isinstance(given, Mapping) else [given or []]
    if total == {i for some in named for i in some}:
        return given
    source, head = vocabulary_names(model)
    alone = list(ids) == [source] and (head is None or head in owners)
    return ids[source] if alone else ids


def with_both(
    model: nn.Module, found: dict[str, nn.Module], ends: tuple[str, str] | None
) -> dict[str, nn.Module]:
    """Return ``found``, in the model's order, with both of ``ends`` if it has one of them."""
    if ends is None or not found.keys() & set(ends):
        return found
    return {n: m for n, m in model.named_modules() if n in found or n in ends}


def vocabulary_size(model: Any) -> int:
    """Return the rows of the model's embeddings, by its config."""
    return int(model.config.get_text_config().vocab_size)


def _set_vocabulary_size(model: Any, size: int) -> None:
    """Write it to the config, and where a model keeps a copy; no weight is changed."""
    config = model.config.get_text_config()
    old = config.vocab_size
    config.vocab_size = size
    for module in model.modules():
        if getattr(module, "vocab_size", None) == old:
            module.vocab_size = size
