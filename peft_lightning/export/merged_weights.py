"""The tensors of a base with an adapter merged, one at a time from the base's files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from peft_lightning.adapters.lora.extra_modules import require_no_extra_modules
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d
from peft_lightning.adapters.lora.loading import check_repeated
from peft_lightning.adapters.lora.method import LoRA
from peft_lightning.adapters.lora.pissa import append_initial_update
from peft_lightning.adapters.lora.state_dict_keys import base_weight_key, factor_keys
from peft_lightning.adapters.merge import add_update, require_place_for_bias
from peft_lightning.adapters.state_dict import PREFIX, check_tensors_fit
from peft_lightning.base_model.weights import StoredTensor, WeightFiles
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class Piece:
    """A tensor of the merged model: one of the base's, cast, with an update or without.

    Args:
        key: Its name in a file.
        name: Its first name in the model; None if the model does not read it.
        source: The base's tensor.
        dtype: Of the result.
        layer: The adapted layer whose weight it is; None if it has no update.
    """

    key: str
    name: str | None
    source: StoredTensor
    dtype: torch.dtype
    layer: str | None

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return math.prod(self.source.shape) * self.dtype.itemsize


class MergedTensors:
    """A merged model as ``pieces`` that are read one by one.

    Args:
        weights: Of the base. The adapter is attached to their model, which has no values.
        adapter: Whose updates are added; None for the base as it is.
        tensors: The adapter's, as its file names them.
        dtype: Of the floating-point tensors; as they are stored if None.

    Raises:
        UserError: If the tensors do not fit the adapter in this model, or a layer shares its
            weight with one that the adapter leaves alone; names it.
    """

    def __init__(
        self,
        weights: WeightFiles,
        adapter: LoRA | None,
        tensors: Mapping[str, Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        self.weights, self.dtype = weights, dtype
        self.layers: dict[str, LoRALinear] = {}
        self.init: bool | str = True
        if adapter is not None:
            adapter, tensors = adapter.resolved_for(weights.model, tensors)
            self.init = adapter.init_lora_weights
            adapter = replace(adapter, init_lora_weights=True)  # the files are complete or HF's
            adapter.attach(weights.model, initialise=False)
            self.layers = adapter.layers(weights.model)
            require_no_extra_modules(weights.model, "merging")
            repeated = {base_weight_key(name) for name in self.layers}
            own = {name: t for name, t in tensors.items() if name not in repeated}
            check_tensors_fit(adapter.state_dict(weights.model), own)
        self.tensors = tensors
        self.pieces = self._pieces()

    @property
    def is_untied(self) -> bool:
        """Whether the output embedding is a tensor of its own now, and was not in the base."""
        return any(piece.key not in self.weights.stored for piece in self.pieces)

    def read(self, piece: Piece) -> Tensor:
        """Return the values of ``piece``.

        Raises:
            UserError: If some are not finite, or the adapter was trained on other ones.
        """
        weight = self._bias(piece.name, piece.source.read())
        if piece.layer is None:
            cast = weight.to(piece.dtype)
            if piece.dtype != weight.dtype and not cast.isfinite().all():
                raise UserError(f"{piece.key} has values that are too large for {piece.dtype}")
            return cast
        layer = self.layers[piece.layer]
        a, b = (self.tensors[key] for key in factor_keys(piece.layer))
        key = base_weight_key(piece.layer)
        check_repeated(key, self.tensors.get(key), a, layer, weight, self.init)
        a, b = append_initial_update(a, b, layer, weight, self.init)
        return add_update(
            weight,
            a,
            b,
            layer.scaling,
            piece.layer,
            transposed=is_conv1d(layer.base_layer),
            dtype=piece.dtype,
            magnitude=self.tensors.get(f"{PREFIX}{piece.layer}.lora_magnitude_vector"),
        )

    def _bias(self, name: str | None, value: Tensor) -> Tensor:
        """Return the merged value of parameter ``name`` if it is a trained bias, else ``value``."""
        stem, _, part = f"{PREFIX}{name}".rpartition(".")
        if part != "bias":
            return value
        trained = (self.tensors.get(f"{stem}.{part}") for part in ("bias", "base_layer.bias"))
        value = next((t for t in trained if t is not None), value)
        update = self.tensors.get(f"{stem}.lora_B.bias")
        if update is None:
            return value
        return value + self.layers[stem.removeprefix(PREFIX)].scaling * update

    def _pieces(self) -> list[Piece]:
        """Return the tensors of the merged model in the order of the base's files."""
        stored, names = self.weights.stored, self.weights.names()
        updated: dict[str, str] = {}  # key -> layer
        added: list[Piece] = []

        def piece(key: str, name: str | None, source: StoredTensor, layer: str | None) -> Piece:
            wanted = self.dtype if source.dtype.is_floating_point else None
            return Piece(key, name, source, wanted or source.dtype, layer)

        head = self.weights.model.get_output_embeddings()
        for name, layer in self.layers.items():
            require_place_for_bias(layer, name)
            weight = f"{name}.weight"
            key = self.weights.keys[weight]
            if len(names[key]) == 1:
                updated[key] = name
            elif layer is head and len(names[key]) == 2:
                added.append(piece(weight, weight, stored[key], name))
            else:
                others = ", ".join(n for n in names[key] if n != weight)
                raise UserError(
                    f"cannot merge into {name}: its weight is also that of {others}, which the "
                    "adapter leaves alone or changes otherwise; serve the adapter unmerged"
                )
        own = {p.key for p in added}  # a tied head that the files hold all the same
        kept = [
            piece(key, names.get(key, [None])[0], source, updated.get(key))
            for key, source in stored.items()
            if key not in own
        ]
        return kept + added
