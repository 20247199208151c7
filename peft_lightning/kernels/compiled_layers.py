"""torch.compile of the decoder layers, in place and one by one: all share the same code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache

from peft_lightning.kernels.decoder_layers import decoder_layers
from peft_lightning.messages import UserError

_VARIANTS = 256  # a model needs about four: of training, evaluation, one length and any


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile the forward of every decoder layer, for batches of any length.

    Names of parameters stay as they are. Generation, which has a cache of keys and values, runs
    the layers as they were.

    Args:
        model: Its decoder layers are changed in place.
        backend: Of torch.compile.

    Raises:
        UserError: If there is no such layer, or no C++ compiler on this machine.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no layers of the usual kind: set model.compile to false"
        )
    compiler = os.environ.get("CXX", "g++")
    if backend == "inductor" and shutil.which(compiler) is None:
        raise UserError(
            f"model.compile needs a C++ compiler, and there is no {compiler}: install it, or set "
            "model.compile to false"
        )
    # all models of a process share the code of a class, and this is a limit on its variants
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * _VARIANTS)
    for layer in layers:
        compiled: Any = torch.compile(layer.forward, dynamic=True, fullgraph=True, backend=backend)
        layer.forward = partial(_forward, layer.forward, compiled)


def _forward(
    plain: Callable[..., Any], compiled: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    cached = any(isinstance(value, Cache) for value in (*args, *kwargs.values()))
    return (plain if cached else compiled)(*args, **kwargs)
