"""Modules that a LoRA trains beside linear layers: embeddings, whole modules, rows of tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from peft_lightning.adapters.lora.embedding import LoRAEmbedding
from peft_lightning.adapters.lora.hf_tying import require_readable_rows
from peft_lightning.adapters.lora.modules_to_save import ModulesToSaveWrapper, find_modules_to_save
from peft_lightning.adapters.lora.trainable_tokens import (
    TokenRows,
    TrainableTokensLayer,
    find_tokens,
    is_tied,
    vocabulary_names,
)
from peft_lightning.adapters.new_tokens import NewTokens, initial_rows
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.messages import UserError, shortened

ExtraModule = LoRAEmbedding | ModulesToSaveWrapper | TrainableTokensLayer

_SIZE = "_base_vocab_size"  # attribute of a model with new tokens: its size without them


@dataclass(frozen=True)
class ExtraModules:
    """The modules to train beside linear layers, found in a model without an adapter.

    Args:
        saved: Modules to train whole (``modules_to_save``), by name.
        tokens: Name of an embedding -> the ids of the tokens whose rows are trained.
        pieces: Id of a new token -> the ids that its text was tokenized to before.
        tied_rows: Name of an output embedding that shares the rows of the input embedding.
        tied_embeddings: Names of input and output embedding if they have to stay one weight.
    """

    saved: dict[str, nn.Module]
    tokens: dict[str, list[int]]
    pieces: dict[int, list[int]]
    tied_rows: str | None
    tied_embeddings: tuple[str, str] | None

    @classmethod
    def find(
        cls,
        model: nn.Module,
        modules_to_save: Sequence[str] | None,
        token_ids: Sequence[int] | Mapping[str, Sequence[int]] | None,
        new_tokens: NewTokens | None,
        ensure_weight_tying: bool,
        loading: bool,
    ) -> ExtraModules:
        """Find the modules that the options of ``LoRA`` name.

        Args:
            model: The base, without an adapter.
            modules_to_save: See ``LoRA``, as for the next three.
            token_ids: The option ``trainable_token_indices``.
            new_tokens: With their ids.
            ensure_weight_tying: See ``LoRA``.
            loading: Whether the tensors come from a file.

        Raises:
            UserError: If a module or token is not there, or options exclude each other.
        """
        source, head = vocabulary_names(model)
        pair = (source, head) if ensure_weight_tying and head and is_tied(model) else None
        saved = find_modules_to_save(model, modules_to_save) if modules_to_save else {}
        saved = with_tied_pair(model, saved, pair)
        wanted = {} if token_ids is None else token_ids
        pieces = {new["id"]: new["pieces"] for new in (new_tokens or {}).values()}
        tokens, tied = find_tokens(model, wanted, list(pieces), saved, ensure_weight_tying, loading)
        if not loading:
            require_readable_rows(model, tokens, is_tied(model), saved)
        return cls(saved, tokens, pieces, tied, pair)

    def with_tied_pair(self, model: nn.Module, found: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """Return ``found`` with both embeddings if it has one of them and they stay tied."""
        return with_tied_pair(model, found, self.tied_embeddings)

    def check(self, targets: Collection[str]) -> None:
        """Raise UserError if two options would train the same module."""
        rows = {*self.tokens, *([self.tied_rows] if self.tied_rows else [])}
        for names, other in ((targets, "target_modules"), (self.saved, "modules_to_save")):
            if both := [name for name in names if name in rows]:
                raise UserError(
                    f"{shortened(both)} would be trained twice, by {other} and by "
                    "trainable_token_indices or new_tokens: leave one out"
                )

    def insert(self, model: Any, initialise: bool) -> None:
        """Put the modules and rows into ``model``."""
        module: Any
        for name, module in self.saved.items():
            saved = ModulesToSaveWrapper(module)
            if self.pieces and name in vocabulary_names(model):
                bias = getattr(module, "bias", None)
                columns = [module.weight] if bias is None else [module.weight, bias[:, None]]
                new = [initial_rows(c, list(self.pieces), self.pieces) for c in columns]
                saved.enlarge(new[0], None if bias is None else new[1][:, 0])
            model.set_submodule(name, saved)
        if self.tied_embeddings and self.tied_embeddings[0] in self.saved:
            first, second = (
                model.get_submodule(name).modules_to_save for name in self.tied_embeddings
            )
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
    """Raise the vocabulary size of ``model`` to ``size``, until ``remove_extra_modules``."""
    if size > vocabulary_size(model):
        if not hasattr(model, _SIZE):
            setattr(model, _SIZE, vocabulary_size(model))
        _set_vocabulary_size(model, size)


def resize_saved_embeddings(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Resize embeddings that are trained whole to the number of rows that they have in a file."""
    names = vocabulary_names(model)
    wrappers = {
        n: m for n, m in extra_modules(model).items() if isinstance(m, ModulesToSaveWrapper)
    }
    saved = {name: wrapper for name, wrapper in wrappers.items() if name in names}
    shared = len({id(module.modules_to_save.weight) for module in saved.values()}) < len(saved)
    for name, module in saved.items():
        weight = tensors.get(f"{PREFIX}{name}.weight")
        if weight is not None and len(weight) > len(module.weight):
            bias = tensors.get(f"{PREFIX}{name}.bias")
            known = len(module.weight)
            module.enlarge(weight[known:], None if bias is None else bias[known:])
            enlarge_vocabulary(model, len(weight))
    if shared:
        first, second = (module.modules_to_save for module in saved.values())
        second.weight = first.weight


def extra_modules(model: nn.Module) -> dict[str, ExtraModule]:
    """Return the modules of ``model`` that an adapter trains beside linear layers, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, ExtraModule)}


def extra_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trained tensors of ``extra_modules`` by their names in the model."""
    return {
        f"{name}.{key}": tensor
        for name, module in extra_modules(model).items()
        for key, tensor in module.tensors().items()
    }


def require_no_extra_modules(model: nn.Module, what: str) -> None:
    """Raise UserError if ``what`` is impossible as more than linear layers are trained."""
    if found := extra_modules(model):
        raise UserError(
            f"{what} takes updates of linear layers only, and the adapter trains "
            f"{shortened(list(found))} too: merge it, python -m peft_lightning merge CKPT OUT"
        )


def remove_extra_modules(model: nn.Module) -> None:
    """Put the base's own modules back, and the size of its vocabulary."""
    for name, module in extra_modules(model).items():
        model.set_submodule(name, module.base_layer)
    if hasattr(model, _SIZE):
        _set_vocabulary_size(model, getattr(model, _SIZE))
        delattr(model, _SIZE)


def hf_token_indices(model: nn.Module, given: Any) -> Any:
    """Return ``trainable_token_indices`` for HF PEFT's config, with the new tokens.

    Args:
        model: The model with the adapter.
        given: The option, which is returned if it names all tokens that are trained.
    """
    owners = {n: p for n, p in extra_modules(model).items() if isinstance(p, TrainableTokensLayer)}
    ids = {n: p.token_adapter.ids.tolist() for n, p in owners.items() if not p.is_tied}
    total = {i for some in ids.values() for i in some}
    named = given.values() if isinstance(given, Mapping) else [given or []]
    if total == {i for some in named for i in some}:
        return given
    source, head = vocabulary_names(model)
    alone = list(ids) == [source] and (head is None or head in owners)
    return ids[source] if alone else ids


def with_tied_pair(
    model: nn.Module, found: dict[str, nn.Module], pair: tuple[str, str] | None
) -> dict[str, nn.Module]:
    """Return ``found``, in the model's order, with both names of ``pair`` if it has one of them."""
    if pair is None or not found.keys() & set(pair):
        return found
    return {n: m for n, m in model.named_modules() if n in found or n in pair}


def vocabulary_size(model: Any) -> int:
    """Return the vocabulary size in the model's config."""
    return int(model.config.get_text_config().vocab_size)


def _set_vocabulary_size(model: Any, size: int) -> None:
    """Set it in the config and where modules keep a copy; weights are not changed."""
    config = model.config.get_text_config()
    old = config.vocab_size
    config.vocab_size = size
    for module in model.modules():
        if getattr(module, "vocab_size", None) == old:
            module.vocab_size = size
