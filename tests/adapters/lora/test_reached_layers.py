"""Layers that an update would not reach are left out of shorthands and refused by name."""

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from peft_lightning import LoRA, PromptTuning
from peft_lightning.adapters import save_adapter
from peft_lightning.adapters.lora.reached_layers import left_out
from peft_lightning.messages import UserError
from tiny import tiny_model
from tiny_configs import tiny_config

IDS = torch.arange(8, 40)[None] % 200


def model_of(model_type):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(model_type)).eval()


def adapted(model, **options):
    adapter = LoRA(r=2, init_lora_weights=False, **options)
    adapter.attach(model)
    return adapter


def leaves(adapter, model):
    return {name.rpartition(".")[2] for name in adapter.layers(model)}


@pytest.mark.parametrize(
    "model_type",
    ["mamba", "llama4_text", "phimoe", "rwkv", "big_bird", "deepseek_v4", "zamba2", "laguna"],
)
def test_every_update_of_all_linear_has_a_gradient(model_type):
    model = model_of(model_type)
    adapter = adapted(model)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    tensors = adapter.tensors(model)
    assert len(tensors) > 3
    assert [name for name, t in tensors.items() if t.grad is None or not t.grad.any()] == []


@pytest.mark.parametrize(
    ("model_type", "name", "reason"),
    [
        ("mamba", "dt_proj", "its weight is used and its forward never called"),
        ("mamba", "out_proj", "HF PEFT refuses it in a mamba model"),
        ("phimoe", "router", "its output is not one tensor"),
        ("big_bird", "pooler", "the logits have no gradient through it"),
        ("blenderbot", "encoder_attn.k_proj", "no forward over text runs it"),
        ("deepseek_v4", "o_a_proj", "its output has not the shape of a linear layer's"),
        ("laguna", "shared_experts.up_proj", "HF PEFT looks for it under another name"),
    ],
)
def test_a_named_layer_that_its_update_would_not_reach_is_refused_with_the_reason(
    model_type, name, reason
):
    model = model_of(model_type)
    with pytest.raises(UserError, match=rf"an update of \S*{name} would have no effect, {reason}"):
        adapted(model, target_modules=[name])
    assert not left_out(model)


def test_of_a_name_that_some_layers_have_those_are_adapted_that_run(tmp_path):
    model = model_of("blenderbot")
    adapter = adapted(model, target_modules=["k_proj"])
    assert len(adapter.layers(model)) == 2
    assert "not: k_proj 2 (no forward over text runs it)" in adapter.count_layers(model)
    save_adapter(adapter, model, tmp_path / "saved")
    hf = peft.PeftModel.from_pretrained(model_of("blenderbot"), tmp_path / "saved")
    assert sum("lora_A" in name for name, _ in hf.named_parameters()) == 2


@pytest.mark.parametrize("model_type", ["mamba", "rwkv"])
def test_hf_peft_reads_all_linear_and_virtual_tokens_of_models_without_attention(
    model_type, tmp_path
):
    for name, adapter in {"a": LoRA(r=2, init_lora_weights=False), "b": PromptTuning(3)}.items():
        model = model_of(model_type)
        adapter.attach(model)
        save_adapter(adapter, model, tmp_path / name)
        given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
        hf = peft.PeftModel.from_pretrained(model_of(model_type), tmp_path / name)
        with torch.no_grad():
            ours = model(**adapter.prepare_inputs(model, given)).logits[:, -1]
            torch.testing.assert_close(ours, hf(**given).logits[:, -1], rtol=1e-4, atol=1e-5)


def test_a_layer_that_only_its_twin_with_the_same_weight_runs_is_left_out():
    model = model_of("zamba2")
    of_lists = [name for name in adapted(model).layers(model) if "adapter_list" in name]
    of_first, of_second = (
        {name.partition("adapter_list.")[2] for name in of_lists if f"layers.{i}." in name}
        for i in (1, 3)
    )
    assert (of_first, of_second) == ({"0.0", "0.1"}, {"1.0", "1.1"})


def test_experts_that_no_token_was_sent_to_are_adapted():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(50))

        def forward(self, x):
            return self.experts[7](x)

    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp = Experts()
    assert len(adapted(model).layers(model)) == 2 * (4 + 50)


def test_a_mixture_of_experts_says_how_many_layers_of_each_kind_have_an_update():
    model = model_of("qwen2_moe")
    said = adapted(model).count_layers(model)
    assert said.startswith("q_proj 2, k_proj 2, v_proj 2, o_proj 2, gate_proj 2")
    assert "gate_up_proj 8 (of experts, in one parameter a layer)" in said
    assert adapted(tiny_model("llama")).count_layers(tiny_model("llama")) is None


@pytest.mark.parametrize("names", ["mlp", ["gate_up_proj"]])
def test_experts_in_one_parameter_are_named_where_they_are_asked_for(names):
    with pytest.raises(UserError, match=r"MixtralForCausalLM has no .* a layer \(gate_up_proj 8"):
        adapted(model_of("mixtral"), target_modules=names)
    assert "down_proj 8 (of experts" in adapted(model := model_of("mixtral")).count_layers(model)


def test_an_output_may_be_changed_in_place():
    layer = adapted_linear = nn.Sequential(nn.Linear(4, 4, bias=False)).requires_grad_(False)
    LoRA(r=1, target_modules=["0"], init_lora_weights=False).attach(layer)
    x = torch.randn(2, 3, 4)
    output = adapted_linear(x)
    output += 1
    output.sum().backward()
    assert layer[0].lora_A.weight.grad.any()
