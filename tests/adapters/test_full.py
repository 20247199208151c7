import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    PreTrainedTokenizerFast,
)

from peft_lightning.adapters import Full, LoRA, load_adapter, read_adapter, save_adapter
from peft_lightning.base_model.portable import make_portable
from tiny import ARCHITECTURES, tiny_model

IDS = torch.arange(3, 17).view(2, 7)


def trained(architecture):
    """Return a model attached to, frozen before, and moved by one step."""
    model = tiny_model(architecture).requires_grad_(False)
    adapter = Full()
    adapter.attach(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    return model, adapter


def test_every_weight_is_trained_and_the_start_is_the_base():
    model = tiny_model("llama").requires_grad_(False)
    before = model(IDS).logits
    Full().attach(model)
    assert torch.equal(model(IDS).logits, before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_folder_is_what_save_pretrained_writes_and_transformers_loads_it(
    architecture, tmp_path
):
    model, adapter = trained(architecture)
    assert not torch.equal(model(IDS).logits, tiny_model(architecture)(IDS).logits)
    save_adapter(adapter, model, tmp_path / "ours", {"base_fingerprint": {"a": 1}})
    model.save_pretrained(tmp_path / "theirs")
    make_portable(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in ("ours", "theirs"))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("config.json", "generation_config.json"):
        files = [json.loads((tmp_path / side / name).read_text()) for side in ("ours", "theirs")]
        assert files[0] == files[1]
    assert not (tmp_path / "ours" / "adapter_config.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_the_folder_is_read_back_and_loaded_onto_a_base(tmp_path):
    model, adapter = trained("gpt2")
    save_adapter(adapter, model, tmp_path / "x")
    read, tensors, facts = read_adapter(tmp_path / "x")
    assert (read, facts["peft_type"]) == (Full(), "FULL")
    assert set(tensors) == set(adapter.state_dict(model))
    fresh = tiny_model("gpt2")
    assert load_adapter(fresh, tmp_path / "x") == Full()
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    assert not any(p.requires_grad for p in fresh.parameters())
    with pytest.raises(ValueError, match=r"1 missing in the file: transformer.wte.weight"):
        adapter.load_state_dict(model, {k: v for k, v in tensors.items() if "wte" not in k})


def test_the_experts_of_a_mixture_have_the_names_of_every_other_program_in_the_file(tmp_path):
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, pad_token_id=0,
    )  # fmt: skip
    model, adapter = AutoModelForCausalLM.from_config(config).eval(), Full()
    fresh = copy.deepcopy(model)
    adapter.attach(model)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(adapter, model, tmp_path / "x")
    model.save_pretrained(tmp_path / "y")
    ours, theirs = (load_file(tmp_path / n / "model.safetensors") for n in "xy")
    assert ours.keys() == theirs.keys()
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    load_adapter(fresh, tmp_path / "x")
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    loaded, problems = AutoModelForCausalLM.from_pretrained(
        tmp_path / "x", output_loading_info=True
    )
    assert not any(problems.values())
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_the_tokenizer_is_written_with_the_model_and_with_an_adapter(tmp_path):
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")
    tokenizer.chat_template = "{{ messages }}"
    model, adapter = trained("llama")
    save_adapter(adapter, model, tmp_path / "x", tokenizer=tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "x")
    assert loaded("a").input_ids == [1]
    assert loaded.chat_template == tokenizer.chat_template
    lora = LoRA(r=2)
    other = tiny_model("llama")
    lora.attach(other)
    save_adapter(lora, other, tmp_path / "y", tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "y")("a").input_ids == [1]


def test_half_precision_is_refused_with_the_remedy():
    model = tiny_model("llama", torch.bfloat16).requires_grad_(False)
    with pytest.raises(ValueError, match=r"needs float32.*--model.dtype float32"):
        Full().attach(model)
    assert not any(p.requires_grad for p in model.parameters())


def test_the_base_cannot_be_had_back():
    model, adapter = trained("llama")
    with pytest.raises(ValueError, match=r"has overwritten the base model.*load the base again"):
        adapter.detach(model)
