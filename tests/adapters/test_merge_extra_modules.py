"""Merged embeddings, whole modules and tokens' rows compute what the adapter does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from parity import IDS, randomise
from peft_lightning.adapters import LoRA, save_adapter
from peft_lightning.adapters.lora.merge_extra_modules import has_extra_modules
from peft_lightning.adapters.merge import merged
from peft_lightning.export.merged_folder import write_merged
from rounding import assert_near
from tiny_run import byte_tokenizer

SITUATIONS = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "both embeddings": {"target_modules": ["embed_tokens", "lm_head"]},
    "embedding, tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "saved head": {"modules_to_save": ["lm_head", "norm"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tokens": {"trainable_token_indices": [5, 3]},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [5, 3]}},
    "new tokens": {"new_tokens": ["<call>", "</call>"]},
    "new tokens, saved": {"new_tokens": ["<call>"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_merged_folder_computes_what_was_trained(bases, architecture, situation, tmp_path):
    base = str(bases[architecture])
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    before, size = model(IDS).logits, model.config.vocab_size
    fields = {"target_modules": ["q_proj"], **SITUATIONS[situation]}
    adapter = LoRA(r=2, lora_alpha=2, **fields).with_tokenizer(byte_tokenizer())
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    logits = model(IDS).logits
    assert has_extra_modules(adapter.state_dict(model))
    with merged(model):
        assert not any("base_layer" in name for name, _ in model.named_modules())
        assert_near(model(IDS).logits, logits)
    assert torch.equal(model(IDS).logits, logits)
    save_adapter(adapter, model, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    options = {"trust_remote_code": False, "revision": None}
    folders = tmp_path / "merged", str(tmp_path / "adapter")
    write_merged(*folders, base, None, 2**30, False, options)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert_near(again(IDS).logits, logits)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, before)
    assert model.config.vocab_size == size
    kept = situation in ("saved, tied", "tokens", "new tokens")
    assert again.config.tie_word_embeddings == (architecture == "qwen2" and kept) or (
        situation == "embedding, tied"  # two roundings of one sum: tied or not, both are right
    )


def test_updates_of_linear_layers_alone_are_streamed():
    names = ["a.lora_A.weight", "a.lora_B.weight", "lm_head.base_layer.weight", "a.bias"]
    assert not has_extra_modules([*names, "a.lora_magnitude_vector", "a.lora_B.bias"])
