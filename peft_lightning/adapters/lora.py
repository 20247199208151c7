"""LoRA: low-rank updates to frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import PEFT_VERSION, Adapter, plain_number, tokenizer_files
from peft_lightning.adapters.beside import (
    Beside,
    fit_saved,
    part_tensors,
    remove_parts,
    trained_ids,
)
from peft_lightning.adapters.enlarged import only_new_rows
from peft_lightning.adapters.lora_embedding import LoRAEmbedding, is_embedding, tied_head
from peft_lightning.adapters.lora_layers import LoRALinear, group_by_input, is_conv1d
from peft_lightning.adapters.matching import match_pattern
from peft_lightning.adapters.names import nearest
from peft_lightning.adapters.new_tokens import add_new_tokens, read_new_tokens
from peft_lightning.adapters.saved_modules import is_within
from peft_lightning.adapters.targeting import Targets

_INITS = ("kaiming", "gaussian")


@dataclass(frozen=True)
class LoRA(Adapter):
    """Adds a trainable rank-``r`` update to every targeted linear layer or embedding.

    ``y = W x + scaling * B A x`` with ``W`` frozen; ``B`` starts at zero, so training starts from
    the base model.

    Args:
        r: Rank of the updates, at least 1.
        lora_alpha: Numerator of the update's scale, ``lora_alpha / r``.
        lora_dropout: Dropout on the input of each update, in [0, 1).
        target_modules: Layers to act on: ``all-linear`` (all but the output embedding),
            ``attention``, ``mlp``, a list of names or ends of names, or a regular expression
            for the whole name.
        exclude_modules: Layers to leave out: a list of names or ends of names, or a regular
            expression.
        layers_to_transform: Numbers of the decoder layers to act on, counted from 0; all if None.
        layers_pattern: Name of the module list that these numbers count, such as ``layers``.
        rank_pattern: Other ranks for some layers: end of the name or regular expression -> rank.
        alpha_pattern: Other ``lora_alpha`` for some layers, likewise.
        use_rslora: Scale by ``lora_alpha / sqrt(r)`` instead (arXiv:2312.03732).
        init_lora_weights: True or ``kaiming``: ``A`` as a linear layer's, ``B`` zero;
            ``gaussian``: ``A`` normal with deviation 1/r, ``B`` zero; False: both random, for
            tests.
        modules_to_save: Modules to train whole, such as ``lm_head`` or ``embed_tokens``: ends of
            their names. They are saved whole too.
        trainable_token_indices: Ids of tokens whose embeddings are trained, and of nothing else in
            the vocabulary; those of the input embedding and a tied output embedding, or by ends of
            modules' names: ``{embed_tokens: [5], lm_head: [5]}``.
        ensure_weight_tying: Whether input and output embedding of a model that ties them stay one
            weight if the options above name one of them.
        new_tokens: Texts that become tokens of their own: a list, or a file with one a line. The
            vocabulary grows by them and their embeddings are trained, from the mean of the tokens
            that the text was made of before.

    Raises:
        ValueError: If a value is out of its range.
    """

    peft_type: ClassVar[str] = "LORA"
    learning_rate: ClassVar[float] = 2e-4
    hf_defaults: ClassVar[dict[str, Any]] = {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "qalora_group_size": 16,
        "r": 8,
        "rank_pattern": {},
        "revision": None,
        "target_modules": None,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    }
    # fan_in_fan_out follows from the layer; the other two only serve what is off
    hf_ignored: ClassVar[frozenset[str]] = Adapter.hf_ignored | {
        "fan_in_fan_out",
        "megatron_core",
        "qalora_group_size",
    }

    own_options: ClassVar[frozenset[str]] = frozenset({"new_tokens"})

    r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool = False
    new_tokens: list[str] | dict[str, dict[str, Any]] | str | None = None

    def __post_init__(self) -> None:
        if self.target_modules is None:
            raise ValueError("target_modules is not set: name the layers to act on")
        self._require(_is_rank(self.r), "r", "a whole number of at least 1")
        self._require(_is_alpha(self.lora_alpha), "lora_alpha", "a number above 0")
        self._require(0 <= self.lora_dropout < 1, "lora_dropout", "at least 0 and below 1")
        for name in ("rank_pattern", "alpha_pattern"):  # HF PEFT takes None for none
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        ranks_ok = all(_is_rank(r) for r in self.rank_pattern.values())
        self._require(ranks_ok, "rank_pattern", "names with whole numbers of at least 1")
        alphas_ok = all(_is_alpha(alpha) for alpha in self.alpha_pattern.values())
        self._require(alphas_ok, "alpha_pattern", "names with numbers above 0")
        init = self.init_lora_weights
        if not isinstance(init, bool) and init not in _INITS:
            raise ValueError(
                f"init_lora_weights must be true, false, {' or '.join(_INITS)}, got {init!r}"
                + nearest([str(init)], _INITS)
            )
        object.__setattr__(self, "modules_to_save", self.modules_to_save or None)
        object.__setattr__(self, "trainable_token_indices", self.trainable_token_indices or None)
        object.__setattr__(self, "new_tokens", read_new_tokens(self.new_tokens))
        self._targets()

    def with_tokenizer(self, tokenizer: Any) -> LoRA:
        if not self.new_tokens:
            return self
        assert not isinstance(self.new_tokens, str)
        return replace(self, new_tokens=add_new_tokens(tokenizer, self.new_tokens))

    def scaling(self, name: str = "") -> float:
        """Return the factor on the update of the layer called ``name``."""
        alpha = match_pattern(self.alpha_pattern, name) or self.lora_alpha
        rank = self.rank(name)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def rank(self, name: str = "") -> int:
        """Return the rank of the update of the layer called ``name``."""
        return match_pattern(self.rank_pattern, name) or self.r

    def layers(self, model: nn.Module) -> dict[str, LoRALinear]:
        """Return the adapted layers of ``model`` by name."""
        return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"base_model.model.{name}.{part}.weight": getattr(layer, part).weight
            for name, layer in self.layers(model).items()
            for part in ("lora_A", "lora_B")
        } | {f"base_model.model.{name}": tensor for name, tensor in part_tensors(model).items()}

    def fitted(
        self, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[LoRA, Mapping[str, Tensor]]:
        def base_weight(name: str) -> Tensor:
            return cast(Tensor, model.get_submodule(name).weight)

        return only_new_rows(self, tensors, model, base_weight)

    def load_state_dict(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        fit_saved(model, tensors)
        # HF PEFT repeats the weight of an embedding that is adapted: the base has it
        adapted = (LoRALinear, LoRAEmbedding)
        repeated = {
            key: layer.weight
            for name, layer in model.named_modules()
            if isinstance(layer, adapted)
            and (key := f"base_model.model.{name}.base_layer.weight") in tensors
        }
        for key, weight in repeated.items():
            if not torch.equal(tensors[key].to(weight), weight):
                raise ValueError(
                    f"the file brings its own base weight, {key}, and it is not this model's: "
                    "load the base that the adapter was trained on"
                )
        super().load_state_dict(model, {k: t for k, t in tensors.items() if k not in repeated})

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        layers = self.layers(model).values()
        options = {
            **self.hf_options(),
            "alpha_pattern": {k: plain_number(v) for k, v in self.alpha_pattern.items()},
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            "fan_in_fan_out": any(is_conv1d(layer.base_layer) for layer in layers),
            "init_lora_weights": self.init_lora_weights == "kaiming" or self.init_lora_weights,
            "lora_alpha": plain_number(self.lora_alpha),
            "target_modules": self._targets().written(model),
            "trainable_token_indices": trained_ids(model, self.trainable_token_indices),
        }
        return {**self.hf_defaults, **options}

    def texts(self, model: nn.Module, tokenizer: Any = None) -> dict[str, str | bytes]:
        """Return the other files: with new tokens, the tokenizer that has them too, if given."""
        texts = super().texts(model, tokenizer)
        if self.new_tokens and tokenizer is not None:
            texts |= tokenizer_files(tokenizer)
        return texts

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        if isinstance(self.new_tokens, list):
            raise ValueError(
                "the new_tokens have no ids yet: adapter = adapter.with_tokenizer(tokenizer) adds "
                "them to the model's tokenizer"
            )
        beside = Beside.find(
            model,
            self.modules_to_save,
            self.trainable_token_indices,
            self.new_tokens,  # type: ignore[arg-type]
            self.ensure_weight_tying,
            loading=not initialise,
        )
        found = beside.with_both(model, self._targets().find(model))
        found = {name: base for name, base in found.items() if not is_within(name, beside.saved)}
        beside.check(found)
        for option in ("rank_pattern", "alpha_pattern"):
            for key in getattr(self, option):
                if not any(match_pattern({key: True}, name) for name in found):
                    leaves = {name.rpartition(".")[2] for name in found}
                    raise ValueError(
                        f"{option} key {key!r} matches no targeted layer" + nearest([key], leaves)
                    )
        model.requires_grad_(False)
        for name, base in found.items():
            init = self.init_lora_weights if initialise else None
            rank, scaling = self.rank(name), self.scaling(name)
            layer: nn.Module
            if is_embedding(base):
                layer = LoRAEmbedding(cast(nn.Embedding, base), rank, scaling, init)
            elif beside.ends and name == beside.ends[1]:
                layer = tied_head(base, cast(LoRAEmbedding, model.get_submodule(beside.ends[0])))
            else:
                layer = LoRALinear(base, rank, scaling, self.lora_dropout, init)
            model.set_submodule(name, layer)
        beside.insert(model, initialise)
        group_by_input(model)

    def _remove(self, model: nn.Module) -> None:
        for name, layer in self.layers(model).items():
            model.set_submodule(name, layer.base_layer)
        remove_parts(model)

    def _targets(self) -> Targets:
        return Targets(
            self.target_modules,
            self.exclude_modules,
            self.layers_to_transform,
            self.layers_pattern,
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
