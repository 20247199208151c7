"""Bases of 4 or 8 bits by bitsandbytes: how they are loaded, and as plain numbers again."""

from __future__ import annotations

import logging
import math
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from peft_lightning.kernels.native.buffers import trim_heap
from peft_lightning.kernels.packed_weights import multiply_packed
from peft_lightning.messages import UserError, check_choice

QUANTIZATIONS = ("4bit", "8bit")
INSTALL = "pip install bitsandbytes"
MLX = "MLX"


def require_quantization(quantization: str | None) -> None:
    """Raise UserError if ``quantization`` is none of ``QUANTIZATIONS``, or cannot be had."""
    if quantization is None:
        return
    check_choice("quantization", quantization, QUANTIZATIONS)
    if find_spec("bitsandbytes") is None:
        raise UserError(f"quantization {quantization} needs a library that is not here: {INSTALL}")


def quantization_options(
    name: str, config: Any, quantization: str | None, dtype: str
) -> dict[str, Any]:
    """Return what ``from_pretrained`` takes to quantise a base while it is loaded.

    4 bits are NF4 in blocks of 64 whose scales are quantised too, as of QLoRA (Dettmers et al.
    2023, arXiv:2305.14314); 8 bits are LLM.int8() (arXiv:2208.07339). Embeddings and the output
    embedding stay as they are.

    Args:
        name: Of the base.
        config: Its config, which says whether it is quantised already.
        quantization: One of ``QUANTIZATIONS``, or None.
        dtype: In which to compute; one that is quantised already by bitsandbytes too, whatever
            it computed in when it was saved.

    Returns:
        Options; none for a base of full precision.

    Raises:
        UserError: If the base is quantised already, or bitsandbytes is needed and not there.
    """
    own = quantization_method(config)
    if own == MLX:
        raise UserError(
            f"the base model {name} is quantised by MLX, whose weights are not read: give the one "
            "it was made from, with --base_model"
        )
    if own and quantization:
        raise UserError(
            f"the base model {name} is quantised already, by {own}: leave quantization out"
        )
    if own == "bitsandbytes" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"the base model {name} is quantised by bitsandbytes: {INSTALL}, or give the plain one "
            "it was made from"
        )
    if own == "bitsandbytes" or quantization:
        # it says for each product on a CPU that it rounds the inputs, which is what was asked for
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if not quantization:
        if own == "bitsandbytes" and isinstance(saved := config.quantization_config, dict):
            saved["bnb_4bit_compute_dtype"] = dtype
        return {}
    four = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": getattr(torch, dtype),
    }
    kind = four if quantization == "4bit" else {"load_in_8bit": True}
    return {"quantization_config": BitsAndBytesConfig(**kind)}


def quantization_method(config: Any) -> str | None:
    """Return by what the weights of a model are quantised that has this config: None if not."""
    own = getattr(config, "quantization_config", None)
    if not own:
        return None
    method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
    if method is None and "group_size" in own:  # {"group_size": 64, "bits": 4}
        return MLX
    return str(getattr(method, "value", method))


def is_quantized(model: Any) -> bool:
    """Whether layers of ``model`` are bitsandbytes'."""
    return quantization_method(model.config) == "bitsandbytes"


def rounds_inputs(model: Any) -> bool:
    """Whether layers of 8 bits round their inputs too, by what else is in the batch.

    By bitsandbytes, a column of inputs with one above 6 is computed in float16, the others as
    integers.
    """
    if not is_quantized(model) or not model.config.quantization_config.load_in_8bit:
        return False
    return not any(hasattr(parameter, "packed") for parameter in model.parameters())


def count_numbers(parameter: torch.Tensor) -> int:
    """Return how many numbers a parameter stands for: in 4 bits two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else math.prod(state.shape)


def ready_to_train(model: Any) -> None:
    """Let a quantised model compute by ``packed`` on a CPU; keep bitsandbytes' own way right.

    On CPUs with bfloat16 instructions bitsandbytes stores a layer's 4-bit weight in another
    order once it sees an input without a gradient in eval mode, and computes without autograd
    from then on: after a validation nothing below a layer would be trained by what is above it.

    Raises:
        UserError: If rows of 4-bit weights are no whole blocks: release 0.50.2 takes the scales
            of wrong blocks for them on a CPU.
    """
    for name, module in model.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is None:
            continue
        module.support_avx512bf16_for_cpu = False
        if module.weight.device.type == "cpu" and module.in_features % state.blocksize:
            raise UserError(
                f"4 bits do not work for {name} on a CPU, as its {module.in_features} inputs are "
                f"no multiple of {state.blocksize}: use quantization 8bit, or a GPU"
            )
    multiply_packed(model)
    let_go_of_files(model)


def let_go_of_files(model: Any) -> None:
    """Give back the memory in which the weights were before they were quantised.

    What is not quantised lies in the mapped files, which stay in memory with all that was read.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.is_floating_point():
            tensor.data = tensor.data.clone()
    trim_heap()


def dequantized(model: Any) -> Any:
    """Return ``model`` with plain weights of its dtype, frozen; itself if it is not quantised."""
    if not is_quantized(model):
        return model
    mode = model.training
    plain = model.dequantize(dtype=model.dtype).requires_grad_(False).train(mode)
    plain._weight_conversions = None  # those from files of quantised weights; not back into such
    return plain
