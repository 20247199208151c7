"""What the comparisons with HF PEFT share: folders written by either side, read by either."""

import json
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from peft_lightning.adapters import Adapter, save_adapter
from tiny import tiny_model

IDS = torch.arange(3, 17).view(2, 7)


def randomise(tensors: dict[str, Tensor]) -> None:
    """Fill with N(0, 0.3^2): an update as large as the base's own weights."""
    generator = torch.Generator().manual_seed(1)
    for tensor in tensors.values():
        tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))


def our_folder(adapter: Adapter, model: nn.Module, folder: Path) -> Path:
    """Attach ``adapter`` to ``model``, give it random values and save it."""
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    save_adapter(adapter, model, folder)
    return folder


def hf_folder(config: PeftConfig, model: nn.Module, folder: Path, **options) -> PeftModel:
    """Attach HF PEFT's adapter to ``model``, give it random values and save it with ``options``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = get_peft_model(model, config).eval()
        with torch.no_grad():
            randomise({n: p for n, p in peft.named_parameters() if p.requires_grad})
        peft.save_pretrained(folder, **options)
    return peft


def hf_reads(folder: Path, architecture: str, **kwargs) -> PeftModel:
    """Load ``folder`` by HF PEFT onto a fresh base; it must not complain about its keys."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft = PeftModel.from_pretrained(tiny_model(architecture, **kwargs), folder)
    messages = [str(warning.message) for warning in caught]
    assert not [m for m in messages if "keys" in m or "Unexpected" in m or "ignored" in m]
    return peft


def keys_and_shapes(folder: Path) -> dict[str, tuple]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}


def metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return file.metadata()


def config_json(folder: Path) -> dict:
    """Return the file's content, with the lists whose order means nothing sorted."""
    text = (folder / "adapter_config.json").read_text()
    config = json.loads(text)
    assert text == json.dumps(config, indent=2, sort_keys=True)
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return config


def config_as_hf_reads_it(folder: Path) -> dict:
    return {k: v for k, v in PeftConfig.from_pretrained(folder).to_dict().items()}
