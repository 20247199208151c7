"""LoRA: low-rank updates to frozen linear layers (Hu et al. 2021, arXiv:2106.09685).

``LoRA`` is the configuration; ``attach`` replaces each targeted layer by a ``LoRALinear`` of
``layers.py`` over it, and ``detach`` puts the layers back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter, plain_number
from peft_lightning.adapters.lora.dora import DoRALinear
from peft_lightning.adapters.lora.embedding import LoRAEmbedding, is_embedding, tied_head
from peft_lightning.adapters.lora.extra_modules import (
    ExtraModules,
    extra_tensors,
    hf_token_indices,
    remove_extra_modules,
)
from peft_lightning.adapters.lora.file_options import fitted
from peft_lightning.adapters.lora.grouped_projections import group_projections
from peft_lightning.adapters.lora.hf_parameters import (
    hf_targets,
    require_parameters,
    with_layers_of_parameters,
)
from peft_lightning.adapters.lora.hf_tying import with_seen_tying
from peft_lightning.adapters.lora.init import is_decomposition
from peft_lightning.adapters.lora.layers import LoRALinear, is_conv1d
from peft_lightning.adapters.lora.loading import check_rank, prepare_to_load
from peft_lightning.adapters.lora.modules_to_save import is_within
from peft_lightning.adapters.lora.name_matching import check_patterns_match, match_pattern
from peft_lightning.adapters.lora.peft_config import (
    ELSEWHERE,
    HF_DEFAULTS,
    WITHOUT_EFFECT,
    as_read,
    check_embedding_targets,
    checked_options,
)
from peft_lightning.adapters.lora.pissa import with_doubled_rank
from peft_lightning.adapters.lora.reached_layers import (
    count_kinds,
    forget_unreached,
    note_unreached,
)
from peft_lightning.adapters.lora.resized_vocab import keep_only_new_rows
from peft_lightning.adapters.lora.state_dict_keys import factor_keys
from peft_lightning.adapters.lora.targets import Targets, adaptable_layers
from peft_lightning.adapters.lora.trainable_biases import (
    biases_to_train,
    check_biases,
    make_biases_trainable,
    restore_biases,
    trained_biases,
)
from peft_lightning.adapters.lora.trainable_tokens import vocabulary_names
from peft_lightning.adapters.new_tokens import add_new_tokens
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.adapters.tensor_names import peft_names
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class LoRA(Adapter):
    """Adds a trainable rank-``r`` update to every targeted linear layer or embedding.

    ``y = W x + scaling * B A x`` with ``W`` frozen (Hu et al. 2021, section 4.1); ``B`` starts at
    zero, so training starts from the base model.

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
        UserError: If a value is out of its range.
    """

    peft_type: ClassVar[str] = "LORA"
    learning_rate: ClassVar[float] = 2e-4
    hf_defaults: ClassVar[dict[str, Any]] = HF_DEFAULTS
    hf_ignored: ClassVar[frozenset[str]] = Adapter.hf_ignored | WITHOUT_EFFECT
    own_options: ClassVar[frozenset[str]] = frozenset({"new_tokens"})
    elsewhere: ClassVar[str] = ELSEWHERE

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
        for name, value in checked_options(self._options()).items():
            object.__setattr__(self, name, value)
        self._targets()

    # ---- the layers ----------------------------------------------------------------------------

    def rank(self, name: str = "") -> int:
        """Return the rank of the update of the layer called ``name``."""
        return match_pattern(self.rank_pattern, name) or self.r

    def scaling(self, name: str = "") -> float:
        """Return the factor on the update of the layer called ``name``."""
        alpha = match_pattern(self.alpha_pattern, name) or self.lora_alpha
        rank = self.rank(name)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def layers(self, model: nn.Module) -> dict[str, LoRALinear]:
        """Return the adapted linear layers of ``model`` by name."""
        return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}

    def count_layers(self, model: nn.Module) -> str | None:
        """Return how many layers of each kind have an update and how many do not, and why."""
        base = adaptable_layers(model)
        linear = {name: layer for name, layer in base.items() if not is_embedding(layer)}
        linear.pop(vocabulary_names(model)[1] or "", None)
        return count_kinds(model, list(self.layers(model)), linear)

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        if initialise:
            note_unreached(model, adaptable_layers(model))
        try:
            self._insert_modules(model, initialise)
        except Exception:
            forget_unreached(model)
            raise

    def _insert_modules(self, model: nn.Module, initialise: bool) -> None:
        if isinstance(self.new_tokens, list):
            raise UserError(
                "the new_tokens have no ids yet: adapter = adapter.with_tokenizer(tokenizer) adds "
                "them to the model's tokenizer"
            )
        extra = ExtraModules.find(
            model,
            self.modules_to_save,
            self.trainable_token_indices,
            self.new_tokens,  # type: ignore[arg-type]
            self.ensure_weight_tying,
            loading=not initialise,
        )
        bases = extra.with_tied_pair(model, self._targets().find(model))
        bases = {name: base for name, base in bases.items() if not is_within(name, extra.saved)}
        extra.check(bases)
        check_patterns_match("rank_pattern", self.rank_pattern, bases)
        check_patterns_match("alpha_pattern", self.alpha_pattern, bases)
        linear = {name: base for name, base in bases.items() if not is_embedding(base)}
        check_embedding_targets(self._options(), [name for name in bases if name not in linear])
        biases = biases_to_train(model, self.bias, linear, extra.saved)
        if initialise:
            require_parameters(model, self._options(), linear)
            check_biases(model, self.bias, biases)
        layers = self._new_layers(bases, extra.tied_embeddings, initialise)
        model.requires_grad_(False)
        make_biases_trainable(model, biases)
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        extra.insert(model, initialise)
        group_projections(self.layers(model))

    def _new_layers(
        self,
        bases: Mapping[str, nn.Module],
        tied_embeddings: tuple[str, str] | None,
        initialise: bool,
    ) -> dict[str, nn.Module]:
        """Return a layer with an update over each of ``bases``, by name."""
        init = self.init_lora_weights if initialise else None
        layers: dict[str, nn.Module] = {}
        for name, base in bases.items():
            if is_embedding(base):
                options = (self.rank(name), self.scaling(name), init)
                layers[name] = LoRAEmbedding(cast(nn.Embedding, base), *options)
            elif tied_embeddings and name == tied_embeddings[1]:
                layers[name] = tied_head(base, cast(LoRAEmbedding, layers[tied_embeddings[0]]))
            else:
                layers[name] = self._new_linear(name, base, init)
        return layers

    def _new_linear(self, name: str, base: nn.Module, init: bool | str | None) -> LoRALinear:
        options = (self.rank(name), self.scaling(name), self.lora_dropout, init)
        if self.use_dora:
            layer: LoRALinear = DoRALinear(base, *options)
        else:
            layer = LoRALinear(base, *options, bias=self.lora_bias)
        if init is None and is_decomposition(self.init_lora_weights):
            layer.subtract_initial_update()  # loaded with the rest
        return layer

    def _remove(self, model: nn.Module) -> None:
        restore_biases(model)
        for name, layer in self.layers(model).items():
            model.set_submodule(name, layer.base_layer)
        remove_extra_modules(model)
        forget_unreached(model)

    def _targets(self) -> Targets:
        return Targets(
            self.target_modules,
            self.exclude_modules,
            self.layers_to_transform,
            self.layers_pattern,
        )

    def _options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    # ---- the tensors ---------------------------------------------------------------------------

    @property
    def trains_base(self) -> bool:
        return self.bias != "none"

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        updates = {
            f"{name}.{part}": tensor
            for name, layer in self.layers(model).items()
            for part, tensor in layer.tensors().items()
        }
        found = updates | trained_biases(model) | extra_tensors(model)
        return {PREFIX + name: tensor for name, tensor in found.items()}

    def hf_names(self, names: Iterable[str]) -> dict[str, str]:
        return peft_names(names)

    def resolved_for(
        self, model: nn.Module, tensors: Mapping[str, Tensor]
    ) -> tuple[LoRA, Mapping[str, Tensor]]:
        options, tensors = fitted(self._options(), model, tensors)
        own = replace(self, **options)
        rank = max(map(own.rank, own._targets().find(model)), default=0)
        check_rank(rank, tensors, own.init_lora_weights)
        rows, tensors = keep_only_new_rows(
            tensors,
            model,
            own.trainable_token_indices,
            own.modules_to_save,
            own.ensure_weight_tying,
        )
        return replace(own, **rows), tensors

    def load_state_dict(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        given = prepare_to_load(model, tensors, self.init_lora_weights)
        super().load_state_dict(model, given)
        for name, layer in self.layers(model).items():
            layer.load_factors(*(given[key] for key in factor_keys(name)))

    # ---- the files -----------------------------------------------------------------------------

    def with_tokenizer(self, tokenizer: Any) -> LoRA:
        if not self.new_tokens:
            return self
        assert not isinstance(self.new_tokens, str)
        return replace(self, new_tokens=add_new_tokens(tokenizer, self.new_tokens))

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> LoRA:
        return super().from_hf_config(as_read(with_layers_of_parameters(config)))

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        layers = self.layers(model).values()
        options: dict[str, Any] = {
            **self.hf_options(),
            "alpha_pattern": {k: plain_number(v) for k, v in self.alpha_pattern.items()},
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            "fan_in_fan_out": any(is_conv1d(layer.base_layer) for layer in layers),
            "init_lora_weights": self.init_lora_weights == "kaiming" or self.init_lora_weights,
            "lora_alpha": plain_number(self.lora_alpha),
            "target_modules": self._targets().resolved_names(model),
            # HF PEFT asks a causal LM for what only transformers' models have
            "task_type": "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
            "trainable_token_indices": hf_token_indices(model, self.trainable_token_indices),
        }
        if is_decomposition(self.init_lora_weights):
            options = with_doubled_rank(options)
        adapted = self.layers(model)
        embeddings = [n for n, m in model.named_modules() if isinstance(m, LoRAEmbedding)]
        options = hf_targets(model, options, adapted, embeddings)
        options = with_seen_tying(model, options, [*embeddings, *adapted])
        return {**self.hf_defaults, **options}
