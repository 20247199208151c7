"""Verification of a merged model whose base chooses, as experts for a token, by a hair."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaMLP

from peft_lightning.adapters import LoRA, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.commands.merge import merge
from peft_lightning.export import merged_folder
from tiny_run import byte_tokenizer


@pytest.fixture
def tossed(monkeypatch):
    """Let the last bit of a number decide what an MLP gives for some tokens."""
    forward = LlamaMLP.forward

    def by_a_hair(self, x):
        last_bit = x[..., :1].contiguous().view(torch.int32) & 1
        return forward(self, x) + 0.3 * last_bit * (x[..., 1:2] > 1.5)

    monkeypatch.setattr(LlamaMLP, "forward", by_a_hair)


@pytest.fixture
def lora(base, tmp_path):
    torch.manual_seed(0)
    model, adapter = load_base_model(str(base)), LoRA(r=2, init_lora_weights=False)
    adapter.attach(model)
    facts = {"base_fingerprint": base_fingerprint(model), "base_model": str(base)}
    save_adapter(adapter, model, tmp_path / "lora", facts, byte_tokenizer())
    return str(tmp_path / "lora")


def test_tokens_at_which_rounding_decides_are_left_out_and_counted(lora, tossed, tmp_path, capsys):
    merge(lora, str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert "where rounding decides: logits differ by at most" in said
    left_out = int(said.split(" tokens without ")[1].split()[0])
    assert 0 < left_out < 200


def test_a_wrong_merge_is_found_beside_them(lora, tossed, tmp_path, monkeypatch):
    write = merged_folder.write_streamed

    def wrong(folder, *rest):
        write(folder, *rest)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.embed_tokens.weight"][87] *= 1.1  # of a letter
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(merged_folder, "write_streamed", wrong)
    with pytest.raises(RuntimeError, match="out is not what was trained: its logits differ"):
        merge(lora, str(tmp_path / "out"))
