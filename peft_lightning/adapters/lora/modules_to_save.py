"""Modules that are trained whole beside an adapter: HF PEFT's ``modules_to_save``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from peft_lightning.adapters.base import adapter_dtype
from peft_lightning.kernels.native.stored import output_dtype
from peft_lightning.messages import UserError, did_you_mean, shortened


class ModulesToSaveWrapper(nn.Module):
    """A trained copy of a frozen module, in its place.

    The copy's parameters are float32 (float64 over float64) and are cast where they are used, to
    the dtype in which the base computes, so that small steps are not rounded away. HF PEFT trains
    them in the base's dtype.

    Args:
        base_layer: The frozen module. Kept, and copied.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.modules_to_save = copy.deepcopy(base_layer)
        for parameter in self.modules_to_save.parameters():
            parameter.data = parameter.data.to(adapter_dtype(parameter.dtype))
        self.modules_to_save.requires_grad_(True)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.modules_to_save, self._used(), args, kwargs)

    def cast(self) -> dict[str, Tensor]:
        """Return the trained parameters by name, in the dtypes in which the base's are stored."""
        base = dict(self.base_layer.named_parameters())
        return {name: p.to(base[name].dtype) for name, p in self._trained()}

    def _used(self) -> dict[str, Tensor]:
        """Return the trained parameters by name, in the dtypes in which the base computes."""
        return {name: p.to(self._dtype(name)) for name, p in self._trained()}

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return self.modules_to_save.named_parameters()

    def _dtype(self, name: str) -> torch.dtype:
        owner, _, leaf = name.rpartition(".")
        module = self.base_layer.get_submodule(owner)
        if leaf == "weight":
            return output_dtype(module)
        return cast(Tensor, getattr(module, leaf)).dtype

    @property
    def weight(self) -> Tensor:
        """The trained weight, in the dtype in which the base computes."""
        return cast(Tensor, self.modules_to_save.weight).to(self._dtype("weight"))

    @property
    def bias(self) -> Tensor | None:
        """The trained bias, likewise."""
        bias = cast(Tensor | None, self.modules_to_save.bias)
        return None if bias is None else bias.to(self._dtype("bias"))

    def enlarge(self, rows: Tensor, bias: Tensor | None = None) -> None:
        """Append ``rows`` (n, dim) to the weight of a copied embedding, with its tokens' number.

        Args:
            rows: Of new tokens.
            bias: (n,), of an output embedding that has one.
        """
        copied: Any = self.modules_to_save
        weight = torch.cat([copied.weight.data, rows.to(copied.weight)])
        copied.weight = nn.Parameter(weight)
        if bias is not None:
            copied.bias = nn.Parameter(torch.cat([copied.bias.data, bias.to(copied.bias)]))
        if isinstance(copied, nn.Embedding):
            copied.num_embeddings = len(weight)
        else:
            copied.out_features = len(weight)

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors and buffers by their names in the module."""
        return self.modules_to_save.state_dict(keep_vars=True)


def find_modules_to_save(model: nn.Module, wanted: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules whose names end with one of ``wanted``, as HF PEFT chooses them.

    Not only whole parts of a name count: ``norm`` meets ``input_layernorm`` too.

    Raises:
        UserError: If one of ``wanted`` meets none; names the nearest. If weights are quantised.
    """
    if "" in wanted:  # the end of every name
        raise UserError(f"modules_to_save must name modules, got {list(wanted)!r}")
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if name and name.endswith(tuple(wanted)) and not is_within(name, found):
            found[name] = module
            if any(not p.is_floating_point() for p in module.parameters()):
                raise UserError(
                    f"modules_to_save cannot train {name}, whose weights are quantised: target it "
                    "by LoRA, or load the base without quantization"
                )
    names = [name for name, _ in model.named_modules() if name]
    if unmatched := [w for w in wanted if not any(name.endswith(w) for name in names)]:
        leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        raise UserError(
            f"modules_to_save {unmatched} match no module; there are "
            f"{shortened([leaf for leaf in leaves if not leaf.isdigit()], limit=16)}"
            + did_you_mean([name.rpartition(".")[2] for name in unmatched], leaves)
        )
    return found


def is_within(name: str, modules: Any) -> bool:
    """Whether ``name`` is one of ``modules`` or a part of one."""
    return any(name == other or name.startswith(f"{other}.") for other in modules)
