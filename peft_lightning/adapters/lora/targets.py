"""Which layers an adapter acts on: list, regular expression or shorthand."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from peft_lightning.adapters.lora.default_targets import default_targets
from peft_lightning.adapters.lora.embedding import is_embedding
from peft_lightning.adapters.lora.expressions import fullmatch, require_expression, within_time
from peft_lightning.adapters.lora.layers import is_linear
from peft_lightning.adapters.lora.name_matching import ends_with, matches, shortest_suffixes
from peft_lightning.adapters.lora.reached_layers import left_out, of_stacked_experts
from peft_lightning.messages import UserError, did_you_mean, shortened

SHORTHANDS = ("all-linear", "attention", "mlp")

_ATTENTION = ("attn", "attention")  # in a module's name around an attention's projections
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "moe", "expert")
_BARE_MLP = ("fc1", "fc2")  # OPT has them directly in the layer
_ROUTERS = ("gate", "router")  # of mixtures of experts: not part of "mlp"

MINIMISE_FROM = 20  # names; from there on HF PEFT writes suffixes that tell targets from the rest


@dataclass(frozen=True)
class Targets:
    """A choice among the linear layers and embeddings of a model, by HF PEFT's rules.

    Embeddings are chosen by a list or an expression, by no shorthand.

    Args:
        target_modules: A list of names, each the whole of a layer's name or the end of it after
            a dot; or ``all-linear`` (all but the output embedding), ``attention`` or ``mlp``
            (the linear layers of these blocks, fused ones too, routers of experts left out); any
            other string is a regular expression for the whole name. None for HF PEFT's default
            of the architecture.
        exclude_modules: Names to leave out, as a list or regular expression like the above.
        layers_to_transform: Number or numbers of the layers to act on; all if None. A layer that
            is named in full is chosen whatever its number.
        layers_pattern: Name or names of the module list that the numbers count, such as
            ``layers`` or ``h``; the first numbered one if None.
    """

    target_modules: list[str] | str | None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None

    def __post_init__(self) -> None:
        for field in ("target_modules", "exclude_modules"):
            value = getattr(self, field)
            is_known = isinstance(value, str | list | None)
            if not is_known or value in ("", []) or (isinstance(value, list) and "" in value):
                raise UserError(f"{field} must name layers, got {value!r}")
            if isinstance(value, str) and value not in SHORTHANDS:
                require_expression(value, field, SHORTHANDS)
        for pattern in self._patterns():
            require_expression(pattern, "layers_pattern")
        if self.exclude_modules in SHORTHANDS:
            raise UserError(
                f"exclude_modules takes names or a regular expression, not the shorthand "
                f"{self.exclude_modules!r}"
            )
        if self.layers_to_transform is None:
            if self.layers_pattern is not None:
                raise UserError(
                    f"layers_pattern {self.layers_pattern!r} needs layers_to_transform, which "
                    "numbers the layers it names"
                )
            return
        if not self._numbers() or any(type(n) is not int or n < 0 for n in self._numbers()):
            raise UserError(
                "layers_to_transform must be a layer's number, counted from 0, or a list of "
                f"them, got {self.layers_to_transform!r}"
            )
        if isinstance(self.target_modules, str) and self.target_modules not in SHORTHANDS:
            raise UserError(
                f"layers_to_transform cannot be combined with the regular expression "
                f"{self.target_modules!r}: put the numbers into the expression, or give "
                "target_modules as a list"
            )

    def find(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the chosen layers by name, in the model's order, without those ``left_out``.

        Raises:
            UserError: If a name, an expression or a layer number matches no linear layer or
                embedding. The message names the nearest ones and those there are. If one matches
                nothing but layers that are left out.
        """
        shorthand = self.target_modules in SHORTHANDS
        layers = self._layers(model)
        wanted = self._expanded(model)
        unmatched = self.unmatched_names(model)
        if unmatched or not wanted:
            names = unmatched or [str(self.target_modules)]
            raise UserError(of_stacked_experts(model, names) or self._unmatched(names, layers))
        if unknown := self.unmatched_numbers(model):
            numbers = {n for n in map(self._number, layers) if n is not None}
            there = f"0 to {max(numbers)}" if numbers else "none"
            raise UserError(f"layers_to_transform {unknown} are not there; layers: {there}")
        found = {n: layer for n, layer in layers.items() if self._chooses(wanted, n)}
        if shorthand:  # its names are ours, not the user's
            found = {n: layer for n, layer in found.items() if self._has_number(n)}
        if not found:
            raise UserError(
                f"target_modules {self.target_modules!r} choose no linear layer once "
                f"exclude_modules {self.exclude_modules!r} and layers_to_transform "
                f"{self.layers_to_transform!r} are applied"
            )
        return self._without_left_out(model, wanted, found)

    def _without_left_out(
        self, model: nn.Module, wanted: list[str] | str, found: dict[str, nn.Module]
    ) -> dict[str, nn.Module]:
        reasons = left_out(model)
        kept = {name: layer for name, layer in found.items() if name not in reasons}
        named = isinstance(wanted, list) and self.target_modules not in SHORTHANDS
        for given in [[name] for name in wanted] if named else [wanted]:
            of_one = [name for name in found if matches(given, name)]
            if of_one and not any(name in kept for name in of_one):
                raise UserError(
                    f"target_modules {self.target_modules!r}: an update of {of_one[0]} would have "
                    f"no effect, {reasons[of_one[0]]}; leave it out, or give all-linear"
                )
        return kept

    def unmatched_names(self, model: nn.Module) -> list[str]:
        """Return the names or the expression in ``target_modules`` that match no layer."""
        wanted, layers = self._expanded(model), self._layers(model)
        if isinstance(wanted, str):
            return [] if any(fullmatch(wanted, name) for name in layers) else [wanted]
        return [w for w in wanted if not any(ends_with(name, [w]) for name in layers)]

    def unmatched_numbers(self, model: nn.Module) -> list[int]:
        """Return the numbers in ``layers_to_transform`` of which there is no layer."""
        numbers = set(map(self._number, self._layers(model)))
        return [n for n in self._numbers() if n not in numbers]

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the layers to choose from, by name."""
        shorthand = self.target_modules in SHORTHANDS
        return {
            name: layer
            for name, layer in adaptable_layers(model).items()
            if is_linear(layer) or not shorthand
        }

    def resolved_names(self, model: nn.Module) -> list[str] | str:
        """Return ``target_modules`` for HF PEFT's config, with shorthands resolved to names.

        Other programs find the same layers by it as ``find``: a regular expression that would
        also match modules that are not linear is resolved to names too.
        """
        found = self.find(model)
        everything = [name for name in base_modules(model) if name]
        names = self._expanded(model)
        if isinstance(names, list) and len(names) >= MINIMISE_FROM:
            others = [n for n in everything if not ends_with(n, names)]
            suffixes = shortest_suffixes(names, others)
            names = suffixes if len(suffixes) < len(names) else names
        if [n for n in everything if self._chooses(names, n)] == list(found):
            return names
        return list(found)

    def _expanded(self, model: nn.Module) -> list[str] | str:
        if self.target_modules is None:
            return default_targets(model)
        if self.target_modules not in SHORTHANDS:
            return self.target_modules
        named = base_modules(model)
        head = getattr(model, "get_output_embeddings", lambda: None)()
        heads = (head, getattr(head, "base_layer", head))
        layers = [n for n, m in named.items() if is_linear(m) and not any(m is h for h in heads)]
        if self.target_modules == "attention":
            return [name for name in layers if _inside(name, _ATTENTION)]
        if self.target_modules == "mlp":
            return [name for name in layers if _in_mlp(name)]
        return layers

    def _chooses(self, wanted: list[str] | str, name: str) -> bool:
        """Whether HF PEFT, given ``wanted`` as ``target_modules``, acts on layer ``name``."""
        if self.exclude_modules is not None and matches(self.exclude_modules, name):
            return False
        if isinstance(wanted, list) and name in wanted:
            return True  # a whole name stands for itself, whatever its number
        return matches(wanted, name) and self._has_number(name)

    def _has_number(self, name: str) -> bool:
        return self.layers_to_transform is None or self._number(name) in self._numbers()

    def _numbers(self) -> list[int]:
        given = self.layers_to_transform
        return [] if given is None else given if isinstance(given, list) else [given]

    def _patterns(self) -> list[str]:
        given = self.layers_pattern
        return [given] if isinstance(given, str) else given or []

    def _number(self, name: str) -> int | None:
        """Return the number of the layer that ``name`` is in."""
        if not self.layers_pattern:
            match = re.match(r".*?\.[^.]*\.(\d+)\.", name)
            return int(match[1]) if match else None
        for pattern in self._patterns():
            if match := within_time(rf"(?:^|.*?\.){pattern}\.(\d+)\.", name):
                return int(match[1])
        return None

    def _unmatched(self, unmatched: list[str], layers: Iterable[str]) -> str:
        leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        message = (
            f"target_modules {unmatched} match no linear layer or embedding; there are "
            f"{shortened(leaves, limit=12)}"
        )
        if isinstance(self.target_modules, str) and self.target_modules in leaves:
            return f"{message}. A string is a regular expression for a layer's whole name: " + (
                f"did you mean the list [{self.target_modules}]?"
            )
        near = [*leaves, *(SHORTHANDS if isinstance(self.target_modules, str) else ())]
        return message + did_you_mean([name.rpartition(".")[2] for name in unmatched], near)


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers and embeddings of a model's base by name."""
    modules = base_modules(model).items()
    return {name: layer for name, layer in modules if is_linear(layer) or is_embedding(layer)}


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model by name, with the base layer for each adapted one."""
    found: dict[str, nn.Module] = {}
    adapted = None
    for name, module in model.named_modules():
        if adapted is not None and name.startswith(adapted):
            continue
        if isinstance(base := getattr(module, "base_layer", None), nn.Module):
            adapted = f"{name}."
            module = base
        found[name] = module
    return found


def _inside(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.rpartition(".")[0].lower() for word in words)


def _in_mlp(name: str) -> bool:
    leaf = name.rpartition(".")[2]
    if _inside(name, _ATTENTION) or leaf in _ROUTERS:
        return False
    return leaf in _BARE_MLP or _inside(name, _MLP)
