"""Partial fine-tuning: some of the base's own weights are trained, and nothing is added."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_lightning.adapters.base import Adapter
from peft_lightning.adapters.lora.name_matching import matches
from peft_lightning.adapters.lora.targets import base_modules
from peft_lightning.adapters.state_dict import PREFIX
from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.messages import UserError, did_you_mean, shortened

_FROZEN = "_frozen_parameters"  # attribute of a model: the base's own, by the names of the trained

Place = tuple[nn.Module, str]


@dataclass(frozen=True)
class Partial(Adapter):
    """Trains some weights of the base: the last layers, norms, biases, embeddings, or by name.

    The cheap baseline beside a LoRA and ``Full``. What is chosen by any of the options is trained,
    in copies, so that the base stays as it is; a tied weight is one. The weights have to be
    float32, as in ``Full``, and what is saved are they alone, whole.

    Args:
        last_layers: Number of the last decoder layers, every weight of which is trained.
        norms: Whether the weights of all norms are trained.
        biases: Whether all biases are trained (BitFit, arXiv:2106.10199).
        embeddings: Whether input and output embedding are trained.
        target_modules: Modules every weight of which is trained: a list of names or ends of names,
            or a regular expression for the whole name.
        target_parameters: Single weights, likewise, such as ``self_attn.q_proj.weight``.
        exclude_modules: Modules nothing of which is trained, likewise.

    Raises:
        UserError: If nothing is chosen; from ``attach``, if a choice matches nothing, or weights
            are in half precision or quantised.
    """

    peft_type: ClassVar[str] = "PARTIAL"
    learning_rate: ClassVar[float] = 1e-4
    hf_defaults: ClassVar[dict[str, Any]] = {}

    last_layers: int = 0
    norms: bool = False
    biases: bool = False
    embeddings: bool = False
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        self._require(self.last_layers >= 0, "last_layers", "at least 0")
        for name in ("target_modules", "target_parameters", "exclude_modules"):
            value = getattr(self, name)
            self._require(value is None or bool(value), name, "names, or left out")
            if isinstance(value, str):
                try:
                    re.compile(value)
                except re.error as error:
                    raise UserError(
                        f"{name} {value!r} is no regular expression ({error}); names go in a list"
                    ) from None
        chosen = self.last_layers or self.norms or self.biases or self.embeddings
        if not (chosen or self.target_modules or self.target_parameters):
            raise UserError(
                "Partial trains what is chosen, and nothing is: give last_layers, norms, biases, "
                "embeddings, target_modules or target_parameters"
            )

    @property
    def trains_base(self) -> bool:
        return True

    def chosen(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters to train, each weight by its first name.

        Raises:
            UserError: If an option chooses nothing.
        """
        modules = {name: m for name, m in base_modules(model).items() if name}
        left = {n for n in modules if self.exclude_modules and matches(self.exclude_modules, n)}
        named = [name for name, _ in model.named_parameters()]
        found: set[str] = set()
        for option, names in self._choices(model, modules, named):
            if not names:
                there = sorted({n.rpartition(".")[2] for n in modules if not n[-1].isdigit()})
                value = getattr(self, option)
                near = did_you_mean(value, there) if isinstance(value, list) else ""
                raise UserError(
                    f"{option} {value!r} chooses nothing in a {type(model).__name__}{near}; "
                    f"modules: {shortened(there, limit=12)}"
                )
            found |= names
        wanted = [n for n in named if n in found and not _is_in(n, left)]
        if not wanted:
            raise UserError(f"exclude_modules {self.exclude_modules!r} leaves nothing to train")
        return wanted

    def _choices(
        self, model: Any, modules: dict[str, nn.Module], named: list[str]
    ) -> Iterator[tuple[str, set[str]]]:
        """Yield each option that is given, with the names of the parameters that it chooses."""
        if self.last_layers:
            layers = decoder_layers(model.get_decoder())
            self._require(self.last_layers <= len(layers), "last_layers", f"at most {len(layers)}")
            last = {id(p) for layer in layers[-self.last_layers :] for p in layer.parameters()}
            yield "last_layers", {n for n, p in model.named_parameters() if id(p) in last}
        if self.norms:
            norms = {n for n, m in modules.items() if "norm" in type(m).__name__.lower()}
            yield "norms", {n for n in named if n.rpartition(".")[0] in norms}
        if self.biases:
            yield "biases", {n for n in named if n.rpartition(".")[2] == "bias"}
        if self.embeddings:
            ends = (model.get_input_embeddings(), model.get_output_embeddings())
            own = {id(p) for m in ends if m is not None for p in m.parameters()}
            yield "embeddings", {n for n, p in model.named_parameters() if id(p) in own}
        if (wanted := self.target_modules) is not None:
            for given in [[w] for w in wanted] if isinstance(wanted, list) else [wanted]:
                inside = {n for n in modules if matches(given, n)}
                yield "target_modules", {n for n in named if _is_in(n, inside)}
        if (wanted := self.target_parameters) is not None:
            for given in [[w] for w in wanted] if isinstance(wanted, list) else [wanted]:
                yield "target_parameters", {n for n in named if matches(given, n)}

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        names = self.chosen(model)
        own = dict(model.named_parameters())
        for name in names if initialise else ():  # to answer with, half precision will do
            _require_float32(name, own[name], self.learning_rate)
        model.requires_grad_(False)
        places = _places(model)
        for name in names:
            frozen = own[name]
            copied = frozen.detach().clone() if initialise else torch.zeros_like(frozen)
            _put(places[id(frozen)], nn.Parameter(copied))
        setattr(model, _FROZEN, {name: own[name] for name in names})

    def _remove(self, model: nn.Module) -> None:
        trained, places = dict(model.named_parameters()), _places(model)
        for name, frozen in getattr(model, _FROZEN).items():
            _put(places[id(trained[name])], frozen)
        delattr(model, _FROZEN)

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        trained = dict(model.named_parameters())
        return {PREFIX + name: trained[name] for name in getattr(model, _FROZEN)}

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        """Return the options; HF PEFT has no such method, and says so."""
        base = getattr(model, "name_or_path", None) or None
        return {
            **self.options(),
            "base_model_name_or_path": base,
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
        }

    def merged_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        trained = dict(model.named_parameters())
        chosen = {id(trained[name]) for name in getattr(model, _FROZEN)}
        every = model.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in every if id(parameter) in chosen}


def _is_in(name: str, modules: set[str]) -> bool:
    """Whether a parameter is in one of ``modules``, at any depth."""
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def _require_float32(name: str, parameter: Tensor, rate: float) -> None:
    if not parameter.is_floating_point():
        raise UserError(
            f"{name} is quantised and cannot be trained: load the base without quantization, "
            "or train a LoRA"
        )
    if parameter.dtype in (torch.float16, torch.bfloat16):
        raise UserError(
            f"Partial needs float32 weights, and {name} is {parameter.dtype}: steps of {rate:g} "
            "would round away. Load the base in float32: --model.dtype float32"
        )


def _places(model: nn.Module) -> dict[int, list[Place]]:
    """Return where in the model each parameter is, by its id: a tied one is in several modules."""
    found: dict[int, list[Place]] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((module, leaf))
    return found


def _put(places: list[Place], parameter: nn.Parameter) -> None:
    for module, leaf in places:
        setattr(module, leaf, parameter)
