"""The devices that a test runs on: the CPU always, and a GPU where there is one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_lightning.adapters import Adapter

# cuBLAS reads it once, at its first product: without it a deterministic run is an error
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def trainer_on(device: str) -> dict[str, Any]:
    """Return the options of a trainer on one device."""
    return {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}


def draw_adapter(adapter: Adapter, model: Any, std: float = 0.1) -> None:
    """Give an adapter's tensors random values that are the same on every device."""
    generator = torch.Generator().manual_seed(0)
    for _, tensor in sorted(adapter.state_dict(model).items()):
        tensor.copy_(torch.empty(tensor.shape).normal_(std=std, generator=generator))


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the norm of the difference of all tensors, relative to that of ``expected``."""
    assert found.keys() == expected.keys()
    pairs = [
        (found[name].detach().cpu().double(), tensor.detach().cpu().double())
        for name, tensor in expected.items()
    ]
    difference = torch.stack([(one - other).norm() for one, other in pairs]).norm()
    return float(difference / torch.stack([other.norm() for _, other in pairs]).norm())


def last_checkpoint(root: Path) -> Path:
    """Return where a run in ``root`` has its last checkpoint."""
    return root / "checkpoints" / "last.ckpt"
