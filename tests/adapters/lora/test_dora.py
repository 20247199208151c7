"""DoRA against its definition, in float64 and with the matrix that our layer never builds."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from parity import IDS, hf_folder
from peft_lightning.adapters import LoRA, load_adapter
from peft_lightning.adapters.lora.dora import DoRALinear
from peft_lightning.adapters.merge import merged_weight
from tiny import tiny_model


def random_layer(base, r=3, scaling=0.7, dropout=0.0):
    layer = DoRALinear(base, r, scaling, dropout, False)
    with torch.no_grad():
        for parameter in (layer.lora_A.weight, layer.lora_B.weight, layer.lora_magnitude_vector):
            parameter.normal_()
    return layer


def definition(layer, x):
    """Liu et al. 2024, equation 5, with the norm as a constant (section 4.3)."""
    base = layer.base_layer
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    v = weight + layer.scaling * layer.lora_B.weight @ layer.lora_A.weight  # (out, in)
    norm = torch.linalg.norm(v, dim=1, keepdim=True).detach()
    y = x @ (layer.lora_magnitude_vector[:, None] * v / norm).T
    return y if base.bias is None else y + base.bias


@pytest.mark.parametrize(
    "base", [nn.Linear(6, 4), nn.Linear(6, 4, bias=False), Conv1D(4, 6)], ids=["bias", "none", "1d"]
)
def test_output_and_gradients_are_those_of_the_definition(base):
    layer = random_layer(base.double().requires_grad_(False))
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    assert len(inputs) == 4
    found, expected = layer(x), definition(layer, x)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)
    toward = torch.randn_like(found)
    grads = torch.autograd.grad(found, inputs, toward)
    for ours, theirs in zip(grads, torch.autograd.grad(expected, inputs, toward), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_it_starts_at_the_base_bit_for_bit_and_gives_it_back(architecture):
    model = tiny_model(architecture)
    before = model(IDS).logits
    adapter = LoRA(r=4, use_dora=True)
    adapter.attach(model)
    assert torch.equal(model(IDS).logits, before)
    with torch.no_grad():
        for layer in adapter.layers(model).values():
            layer.lora_magnitude_vector += 0.1
    assert (model(IDS).logits - before).abs().max() > 1e-3
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, before)


def test_layers_that_share_an_input_are_computed_together():
    model = tiny_model("llama")
    adapter = LoRA(r=2, use_dora=True)
    adapter.attach(model)
    assert {layer.path for layer in adapter.layers(model).values()} == {"grouped", "fused"}


def test_dropout_meets_the_update_alone():
    layer = random_layer(nn.Linear(6, 4).double(), dropout=0.9999)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.manual_seed(0)
    gain = (layer.lora_magnitude_vector / layer.row_norms())[None]
    weight, bias = layer.base_layer.weight, layer.base_layer.bias
    assert_close(layer.train()(x), gain * (x @ weight.T) + bias)


@pytest.mark.parametrize("autocast", [False, True])
def test_lengths_are_float32_over_a_bfloat16_base_and_under_autocast(autocast):
    base = nn.Linear(64, 32, dtype=torch.float32 if autocast else torch.bfloat16)
    layer = random_layer(base)
    assert layer.lora_magnitude_vector.dtype == torch.float32
    a, b = layer.lora_A.weight.double(), layer.lora_B.weight.double()
    exact = torch.linalg.norm(base.weight.double() + 0.7 * b @ a, dim=1)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_close(layer.row_norms().double(), exact, rtol=1e-5, atol=1e-5)
        assert layer(x).dtype == torch.bfloat16


def test_a_half_precision_base_is_computed_like_hf_pefts(tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", use_dora=True)
    theirs = hf_folder(config, tiny_model("llama", torch.bfloat16), tmp_path)
    model = tiny_model("llama", torch.bfloat16)
    load_adapter(model, tmp_path)
    exact = tiny_model("llama", torch.float64)
    for p, q in zip(
        exact.parameters(), tiny_model("llama", torch.bfloat16).parameters(), strict=True
    ):
        p.data = q.data.double()
    load_adapter(exact, tmp_path)
    want = exact(IDS).logits
    ours, others = (m(IDS).logits.double() - want for m in (model, theirs))
    assert ours.norm() < 1.5 * others.norm()


def test_a_quantised_base_is_refused():
    base = nn.Linear(6, 4)
    base.weight = nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match=r"that of Linear is \(12, 1\) torch.uint8: load the base"):
        DoRALinear(base, 2, 1.0)


@pytest.mark.parametrize("base", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["linear", "conv1d"])
def test_a_row_of_zeros_of_the_base_stays_one_and_is_merged(base):
    base.requires_grad_(False)
    (base.weight if isinstance(base, nn.Linear) else base.weight.T)[1] = 0
    layer, x = DoRALinear(base, 2, 0.7), torch.randn(3, 6)
    assert_close(layer(x), base(x))
    layer(x).sum().backward()
    trained = [layer.lora_A.weight, layer.lora_B.weight, layer.lora_magnitude_vector]
    assert all(p.grad.isfinite().all() for p in trained)
    assert_close(merged_weight(layer), base.weight)
