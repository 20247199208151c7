"""The fused RMSNorm against its definition, and against the layers it stands for."""

import pytest
import torch
from torch.testing import assert_close

from peft_lightning.kernels.rms_norm import fuse_norms
from tiny import tiny_model


def outputs(layer, x):
    """Return the output, and the gradient of its summed squares with respect to ``x``."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return y, torch.autograd.grad(y.double().square().sum(), x)[0]


def test_it_is_the_input_over_its_root_mean_square_in_float64():
    layer = tiny_model("llama", torch.float64).requires_grad_(False).model.norm
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 3, 32, dtype=torch.float64)
    root = (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).sqrt()
    assert fuse_norms(layer) == 1
    y, grad = outputs(layer, x)
    assert_close(y, layer.weight * x / root, rtol=1e-14, atol=1e-14)
    expected = outputs(
        lambda x: (
            layer.weight * x / (x.square().mean(-1, keepdim=True) + layer.variance_epsilon).sqrt()
        ),
        x,
    )[1]
    assert_close(grad, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_what_transformers_layer_gives(dtype):
    torch.manual_seed(0)
    layer = tiny_model("llama", dtype).requires_grad_(False).model.norm
    torch.nn.init.normal_(layer.weight)
    x = torch.randn(2, 7, 32).to(dtype)
    y, grad = outputs(layer, x)
    assert fuse_norms(layer) == 1
    ours, our_grad = outputs(layer, x)
    eps = torch.finfo(dtype).eps
    assert_close(ours, y, rtol=2 * eps, atol=eps)
    assert (our_grad - grad).norm() <= 2 * eps * grad.norm()


def test_nothing_but_the_input_and_a_number_per_row_is_kept():
    layer = tiny_model("llama").requires_grad_(False).model.norm
    fuse_norms(layer)
    x, kept = torch.randn(5, 32, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    assert sorted(tuple(t.shape) for t in kept) == [(5, 1), (5, 32), (32,)]


def test_a_norm_that_computes_something_else_keeps_its_own_code():
    assert fuse_norms(tiny_model("gemma3")) == 0
    assert fuse_norms(tiny_model("gpt2")) == 0


def test_a_trained_weight_gets_its_gradient():
    layer = tiny_model("llama").model.norm
    fuse_norms(layer)
    layer(torch.randn(5, 32)).square().sum().backward()
    assert layer.weight.grad.abs().max() > 0
