"""Rotary positions in one pass against transformers' own function."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from peft_lightning.kernels.rotary import fuse_rotary
from tiny import ARCHITECTURES, tiny_model
from tiny_configs import tiny_config

ROTARY = {"llama", "qwen2", "gemma3", "gpt_neox", "phi3", "mistral"}  # the others have none


def logits_and_gradients(model):
    """Return the logits of one sequence and the gradients of all weights of the attention."""
    logits = model(input_ids=torch.arange(40)[None] % 90 + 3).logits
    weights = [p for n, p in model.named_parameters() if "attn" in n or "attention" in n]
    return [logits, *torch.autograd.grad(logits.double().square().sum(), weights)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_attention_layer_with_rotary_positions_is_taken(architecture):
    model = tiny_model(architecture)
    layers = model.config.num_hidden_layers if architecture in ROTARY else 0
    assert fuse_rotary(model) == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", sorted(ROTARY))
def test_outputs_and_gradients_are_as_near_to_float64s_as_transformers_own(architecture, dtype):
    plain = tiny_model(architecture, dtype)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    fuse_rotary(fused)
    ours, theirs, expected = map(logits_and_gradients, (fused, plain, exact))
    errors = [
        sum((x.double() - e).norm() / e.norm() for x, e in zip(found, expected, strict=True))
        for found in (ours, theirs)
    ]
    assert errors[0] <= 1.2 * errors[1]


def test_a_batch_of_padded_rows_and_float64_have_transformers_own_numbers():
    plain = tiny_model("llama", torch.float64)
    fused = copy.deepcopy(plain)
    fuse_rotary(fused)
    ids = torch.arange(24).view(2, 12)
    assert torch.equal(fused(input_ids=ids).logits, plain(input_ids=ids).logits)
    fused, plain = fused.float(), plain.float()
    assert torch.equal(fused(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_transformers_module_and_other_models_are_left_alone():
    before, other = modeling_llama.apply_rotary_pos_emb, tiny_model("llama")
    fuse_rotary(tiny_model("llama"))
    assert modeling_llama.apply_rotary_pos_emb is before
    layer = other.model.layers[0].self_attn
    assert layer.forward.__func__.__globals__["apply_rotary_pos_emb"] is before


def test_a_function_that_turns_other_pairs_keeps_its_own_code(monkeypatch):
    def neighbours(q, k, cos, sin, unsqueeze_dim=1):
        turned = [torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) for x in (q, k)]
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return q * cos + turned[0] * sin, k * cos + turned[1] * sin

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", neighbours)
    assert fuse_rotary(tiny_model("llama")) == 0


def test_a_layer_that_turns_a_query_alone_has_transformers_function():
    model = AutoModelForCausalLM.from_config(tiny_config("qwen4_exp_text")).eval()
    ids = torch.arange(8, 40)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert fuse_rotary(model) > 0
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)
