"""LoRA: low-rank updates to frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter, plain_number, tokenizer_files
from peft_lightning.adapters.lora.biases import (
    CHOICES,
    biases_to_train,
    require_trainable,
    restore_biases,
    train_biases,
    trained_biases,
)
from peft_lightning.adapters.lora.dora import DoRALinear
from peft_lightning.adapters.lora.embedding import LoRAEmbedding, is_embedding, tied_head
from peft_lightning.adapters.lora.extra_modules import (
    Beside,
    fit_saved,
    part_tensors,
    remove_parts,
    trained_ids,
)
from peft_lightning.adapters.lora.init import (
    DECOMPOSITIONS,
    RANDOM,
    is_decomposition,
    is_known,
)
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d
from peft_lightning.adapters.lora.matching import match_pattern
from peft_lightning.adapters.lora.modules_to_save import is_within
from peft_lightning.adapters.lora.peft_config import HF_DEFAULTS, WITHOUT_EFFECT
from peft_lightning.adapters.lora.pissa import complete, doubled, without_start
from peft_lightning.adapters.lora.resized_vocab import only_new_rows
from peft_lightning.adapters.lora.shared_input import group_by_input
from peft_lightning.adapters.lora.targets import Targets
from peft_lightning.adapters.new_tokens import add_new_tokens, read_new_tokens
from peft_lightning.messages import check_choice, did_you_mean

_INITS = (*RANDOM, *DECOMPOSITIONS)
_PREFIX = "base_model.model."


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
            for the whole name. None for HF PEFT's default of the architecture.
        exclude_modules: Layers to leave out: a list of names or ends of names, or a regular
            expression.
        layers_to_transform: Numbers of the decoder layers to act on, counted from 0; all if None.
        layers_pattern: Name of the module list that these numbers count, such as ``layers``.
        rank_pattern: Other ranks for some layers: end of the name or regular expression -> rank.
        alpha_pattern: Other ``lora_alpha`` for some layers, likewise.
        use_rslora: Scale by ``lora_alpha / sqrt(r)`` instead (arXiv:2312.03732).
        init_lora_weights: True or ``kaiming``: ``A`` as a linear layer's, ``B`` zero;
            ``gaussian``: ``A`` normal with deviation 1/r, ``B`` zero; ``orthogonal``: both random
            with ``B A`` zero; ``olora``, ``pissa`` or ``pissa_niter_4`` (any number): the
            principal part of ``W``, which the layer subtracts again for good, so that ``W`` stays
            as it is and a plain LoRA of twice the rank is saved; False: both random, for tests.
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
        use_dora: Train the length of each row of ``W + scaling * B A`` too (DoRA,
            arXiv:2402.09353).
        lora_bias: Train a bias of each update too.
        bias: Biases of the base to train too: ``none``, ``lora_only`` (of the adapted layers) or
            ``all``; in the base's dtype, which has to be float32 to start with.

    Raises:
        ValueError: If a value is out of its range.
    """

    peft_type: ClassVar[str] = "LORA"
    learning_rate: ClassVar[float] = 2e-4
    hf_defaults: ClassVar[dict[str, Any]] = HF_DEFAULTS
    hf_ignored: ClassVar[frozenset[str]] = Adapter.hf_ignored | WITHOUT_EFFECT
    own_options: ClassVar[frozenset[str]] = frozenset({"new_tokens"})

    r: int = 16
    lora_alpha: float = 32
    lora_dropout: float = 0.0
    target_modules: list[str] | str | None = "all-linear"
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
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"

    def __post_init__(self) -> None:
        self._require(_is_rank(self.r), "r", "a whole number of at least 1")
        self._require(_is_alpha(self.lora_alpha), "lora_alpha", "a number above 0")
        self._require(_is_share(self.lora_dropout), "lora_dropout", "at least 0 and below 1")
        for name in ("rank_pattern", "alpha_pattern"):  # HF PEFT takes None for none
            object.__setattr__(self, name, dict(getattr(self, name) or {}))
        ranks_ok = all(_is_rank(r) for r in self.rank_pattern.values())
        self._require(ranks_ok, "rank_pattern", "names with whole numbers of at least 1")
        alphas_ok = all(_is_alpha(alpha) for alpha in self.alpha_pattern.values())
        self._require(alphas_ok, "alpha_pattern", "names with numbers above 0")
        init = self.init_lora_weights
        if not is_known(init):
            raise ValueError(
                f"init_lora_weights must be true, false, {', '.join(_INITS)}, got {init!r}"
                + did_you_mean(str(init), _INITS)
            )
        object.__setattr__(self, "modules_to_save", self.modules_to_save or None)
        object.__setattr__(self, "trainable_token_indices", self.trainable_token_indices or None)
        object.__setattr__(self, "new_tokens", read_new_tokens(self.new_tokens))
        check_choice("bias", self.bias, CHOICES)
        if self.lora_bias and (self.use_dora or init not in (True, False)):
            raise ValueError(
                f"lora_bias goes with neither use_dora ({self.use_dora}) nor another "
                f"init_lora_weights than true or false ({init!r}): HF PEFT would not read it"
            )
        self._targets()

    @property
    def trains_base(self) -> bool:
        return self.bias != "none"

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
        of_layers = {
            f"{name}.{part}": tensor
            for name, layer in self.layers(model).items()
            for part, tensor in layer.tensors().items()
        }
        found = of_layers | trained_biases(model) | part_tensors(model)
        return {_PREFIX + name: tensor for name, tensor in found.items()}

    def resolved_for(
        self, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[LoRA, Mapping[str, Tensor]]:
        def base_weight(name: str) -> Tensor:
            return cast(Tensor, model.get_submodule(name).weight)

        firsts = (".lora_A.weight", ".lora_embedding_A")
        stored = [len(t) for name, t in tensors.items() if name.endswith(firsts) and t.ndim]
        asked = max(map(self.rank, self._targets().find(model)), default=0)
        if stored and asked > max(stored):  # before as much memory is asked for
            raise ValueError(
                f"the config asks for rank {asked}, and the file's tensors have at most "
                f"{max(stored)}"
            )
        return only_new_rows(self, tensors, model, base_weight)

    def load_state_dict(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        fit_saved(model, tensors)
        given, layers = dict(tensors), self.layers(model)
        for name, layer in model.named_modules():
            if not isinstance(layer, LoRALinear | LoRAEmbedding):
                continue
            # HF PEFT repeats the weight of an embedding that is adapted: the base has it
            repeated = given.pop(key := f"{_PREFIX}{name}.base_layer.weight", None)
            if repeated is not None and not torch.equal(repeated.to(layer.weight), layer.weight):
                raise ValueError(
                    f"the file brings its own base weight, {key}, and it is not this model's: "
                    "load the base that the adapter was trained on"
                )
        for name, layer in layers.items():
            a, b = _keys(name)
            if a in given and b in given:
                found = complete(given[a], given[b], layer, layer.weight, self.init_lora_weights)
                given |= dict(zip((a, b), found, strict=True))
        super().load_state_dict(model, given)
        for name, layer in layers.items():
            layer.load_initial(*(given[key] for key in _keys(name)))

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
        if is_decomposition(self.init_lora_weights):
            options = doubled(options)
        return {**self.hf_defaults, **options}

    def extra_files(self, model: nn.Module, tokenizer: Any = None) -> dict[str, str | bytes]:
        """Return the other files: with new tokens, the tokenizer that has them too, if given."""
        texts = super().extra_files(model, tokenizer)
        if self.new_tokens and tokenizer is not None:
            texts |= tokenizer_files(tokenizer)
        return texts

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> LoRA:
        return super().from_hf_config(without_start(config))

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
                        f"{option} key {key!r} matches no targeted layer"
                        + did_you_mean(key, leaves)
                    )
        self._require_linear(found)
        outside = {n: base for n, base in found.items() if not is_embedding(base)}
        biases = biases_to_train(model, self.bias, outside, beside.saved)
        if initialise:
            require_trainable(model, self.bias, biases)
        init = self.init_lora_weights if initialise else None
        layers: dict[str, nn.Module] = {}
        for name, base in found.items():
            if is_embedding(base):
                options = (self.rank(name), self.scaling(name), init)
                layers[name] = LoRAEmbedding(cast(nn.Embedding, base), *options)
            elif beside.ends and name == beside.ends[1]:
                layers[name] = tied_head(base, cast(LoRAEmbedding, layers[beside.ends[0]]))
            else:
                layers[name] = self._linear(name, base, init)
        model.requires_grad_(False)
        train_biases(model, biases)
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        beside.insert(model, initialise)
        group_by_input(model)

    def _linear(self, name: str, base: nn.Module, init: bool | str | None) -> LoRALinear:
        options = (self.rank(name), self.scaling(name), self.lora_dropout, init)
        if self.use_dora:
            layer: LoRALinear = DoRALinear(base, *options)
        else:
            layer = LoRALinear(base, *options, bias=self.lora_bias)
        if init is None and is_decomposition(self.init_lora_weights):
            layer.fold_initial()  # to be loaded with the rest
        return layer

    def _require_linear(self, found: Mapping[str, nn.Module]) -> None:
        """Raise ValueError if an embedding is among the targets of what linear layers only take."""
        init = self.init_lora_weights
        given = {
            "use_dora": self.use_dora,
            "lora_bias": self.lora_bias,
            f"init_lora_weights {init!r}": is_decomposition(init) or init == "orthogonal",
        }
        embeddings = [name for name, base in found.items() if is_embedding(base)]
        if embeddings and (options := [name for name, is_set in given.items() if is_set]):
            raise ValueError(
                f"{' and '.join(options)} takes linear layers only, and target_modules choose the "
                f"embedding {embeddings[0]}: leave it out, or train it with modules_to_save"
            )

    def _remove(self, model: nn.Module) -> None:
        restore_biases(model)
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


def _keys(layer: str) -> tuple[str, str]:
    """Return the names in a file of the two matrices of a layer's update."""
    return f"{_PREFIX}{layer}.lora_A.weight", f"{_PREFIX}{layer}.lora_B.weight"


def _is_rank(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value <= torch.finfo(torch.float32).max


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1
