"""The fused activation of gated MLPs against the layers it stands for."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from peft_lightning import LoRA
from peft_lightning.kernels.gated_mlp import fuse_gated_mlps
from peft_lightning.kernels.rms_norm import fuse_norms
from tiny import tiny_model


def adapted(architecture, dtype, fused, adapter=None):
    """Return a model whose every layer was fused or left, with the same random adapter."""
    model = tiny_model(architecture, dtype).requires_grad_(False)
    if fused:
        assert fuse_gated_mlps(model) == model.config.num_hidden_layers
    torch.manual_seed(1)
    (adapter or LoRA(r=4, init_lora_weights=False)).attach(model)
    return model


def gradients(model):
    """Return the loss of a few tokens and the gradients of the trained tensors."""
    ids = torch.arange(14).view(2, 7)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_loss_and_gradients_are_those_of_the_plain_layers(architecture):
    loss, expected = gradients(adapted(architecture, torch.float64, False))
    ours, found = gradients(adapted(architecture, torch.float64, True))
    assert_close(ours, loss, rtol=1e-12, atol=0)
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * gradient.norm(), name


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_in_less_precision_they_are_as_near_to_float64s_as_the_plain_layers(architecture, dtype):
    models = [adapted(architecture, dtype, fused) for fused in (True, False)]
    exact = copy.deepcopy(models[1]).double()
    (ours, found), (theirs, plain), (loss, expected) = map(gradients, (*models, exact))
    eps = torch.finfo(dtype).eps
    assert abs(ours - loss) <= max(1.5 * abs(theirs - loss), 4 * eps * loss)
    errors = [
        sum((one[n].double() - g).norm() / g.norm() for n, g in expected.items())
        for one in (found, plain)
    ]
    assert errors[0] <= 1.2 * errors[1]


def kept_values(fused, tokens=50):
    """Return the numbers kept for the backward pass for each token of one MLP, weights left out."""
    model = adapted("llama", torch.float32, fused)
    fuse_norms(model)
    mlp, kept = model.model.layers[0].mlp, {}
    weights = {p.data_ptr() for p in model.parameters()}
    x = torch.randn(1, tokens, 32, requires_grad=True)

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        mlp(model.model.layers[0].post_attention_layernorm(x))
    return sum(kept.values()) / tokens


def test_what_a_norm_and_an_activation_make_is_not_kept():
    width = tiny_model("llama").config.intermediate_size
    ranks = 3 * 4
    assert kept_values(True) == 32 + 1 + 2 * width + ranks
    assert kept_values(False) >= kept_values(True) + 2 * width


def test_an_mlp_that_computes_something_else_keeps_its_own_code():
    model = tiny_model("llama")
    model.model.layers[0].mlp.forward = lambda x: x
    assert fuse_gated_mlps(model) == 1  # the other layer
    assert fuse_gated_mlps(tiny_model("gpt2")) == 0


def test_an_activation_with_parameters_of_its_own_is_left_alone():
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.PReLU()
    assert fuse_gated_mlps(model) == 0
