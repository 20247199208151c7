"""Full fine-tuning: every weight is trained, the baseline of all adapters."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from peft_lightning.adapters.base import Adapter
from peft_lightning.base_model.portable import portable_files
from peft_lightning.messages import UserError


@dataclass(frozen=True)
class Full(Adapter):
    """Trains every weight of the base model, tied ones once.

    Weights are trained in the dtype they are loaded in, which has to be float32: in bfloat16,
    with its 8 bits, a step of 2e-5 on a weight of 0.02 rounds to nothing. What is saved is a
    plain HF model folder.

    Raises:
        UserError: From ``attach``, if weights are in half precision or quantised; from
            ``detach``, always: the base has been overwritten.
    """

    peft_type: ClassVar[str] = "FULL"
    learning_rate: ClassVar[float] = 2e-5
    tensor_file: ClassVar[str] = "model.safetensors"
    hf_defaults: ClassVar[dict[str, Any]] = {}

    @property
    def trains_base(self) -> bool:
        return True

    def detach(self, model: nn.Module) -> None:
        """Raise: there is no base to go back to."""
        self._require_attached(model)
        raise UserError(
            "full fine-tuning has overwritten the base model, which cannot be given back: load "
            "the base again"
        )

    disable = detach

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        trained = dict(model.named_parameters())  # tied ones under their first name only
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        saved = model.state_dict(keep_vars=True)
        buffers = {name: saved[name] for name in saved if name not in parameters}
        return _names_in_files(model, {**trained, **buffers})

    def hf_config(self, model: nn.Module) -> dict[str, Any]:
        return {
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
        }

    def extra_files(self, model: Any) -> dict[str, str | bytes]:
        """Return the other files of an HF model folder: its configs."""
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.dtype = str(model.dtype).removeprefix("torch.")
        texts: dict[str, str | bytes] = {"config.json": config.to_json_string(use_diff=True)}
        if getattr(model, "generation_config", None) is not None:
            texts["generation_config.json"] = model.generation_config.to_json_string(use_diff=True)
        return portable_files(texts)

    def _insert(self, model: nn.Module, initialise: bool) -> None:
        if any(not p.is_floating_point() for p in model.parameters()):
            raise UserError(
                "full fine-tuning cannot train quantised weights: load the base without "
                "quantization, or train a LoRA"
            )
        half = [
            n for n, p in model.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)
        ]
        if half:
            raise UserError(
                f"full fine-tuning needs float32 weights, and {len(half)} are in half precision, "
                f"{half[0]} the first: steps of {self.learning_rate:g} would round away. Load "
                "the base in float32: --model.dtype float32"
            )
        model.requires_grad_(True)

    def _remove(self, model: nn.Module) -> None:
        model.requires_grad_(False)


class _Views(TorchFunctionMode):
    """A context in which ``contiguous`` copies nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is torch.Tensor.contiguous else func(*args, **(kwargs or {}))


def _names_in_files(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under the names that this architecture's files have.

    Transformers renames some on loading, GPT-NeoX's ``embed_out`` for one, and fuses the experts
    of a mixture, each of which has its own in a file, and in transformers 4. What is returned are
    views, into which a file can be loaded; where that cannot be, the names of the model are kept,
    which transformers 5 reads as well.
    """
    from transformers.core_model_loading import revert_weight_conversion  # only here

    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return tensors
    with _Views():
        named = revert_weight_conversion(model, dict(tensors))
    size = sum(tensor.numel() for tensor in tensors.values())
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    are_views = all(tensor.untyped_storage().data_ptr() in places for tensor in named.values())
    return named if are_views and sum(t.numel() for t in named.values()) == size else tensors
