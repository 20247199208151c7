"""The loss over labelled positions against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from peft_lightning.linear_cross_entropy import (
    head_options,
    labelled_positions,
    linear_cross_entropy,
    logits_cross_entropy,
)


def inputs(dtype=torch.float64, count=7):
    torch.manual_seed(0)
    hidden = torch.randn(count, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 6, dtype=dtype, requires_grad=True)
    bias = torch.randn(11, dtype=dtype, requires_grad=True)
    return hidden, weight, bias, torch.randint(0, 11, (count,))


def weights_of(targets):
    """Return weights of positions: fractions, zeros, and one of many times the others."""
    values = torch.tensor([0.25, 0.0, 1.0, 0.7, 12.0])
    return values[torch.arange(len(targets)) % len(values)]


def definition(hidden, weight, bias, targets, scale=1.0, softcap=None, weights=None):
    logits = hidden @ weight.T
    logits = (logits if bias is None else logits + bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    probability = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    losses = -torch.log(probability[range(len(targets)), targets])
    hits = logits.argmax(-1) == targets
    if weights is None:
        return losses.sum(), hits.sum()
    return (weights.double() * losses).sum(), (weights.double() * hits).sum()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"scale": 3.0, "softcap": 1.5}]
)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_loss_hits_and_all_gradients_are_those_of_the_definition(
    chunk, options, with_bias, weighted
):
    hidden, weight, bias, targets = inputs()
    bias = bias if with_bias else None
    if weighted:
        targets[:4] = (hidden @ weight.T).argmax(-1)[:4]  # some hits
        options = {**options, "weights": weights_of(targets)}
    found = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk=chunk, **options)
    expected = definition(hidden, weight, bias, targets, **options)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    trained = [t for t in (hidden, weight, bias) if t is not None]
    ours = torch.autograd.grad(found[0] * 2.5, trained)
    theirs = torch.autograd.grad(expected[0] * 2.5, trained)
    assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("options", [{}, {"scale": 3.0, "softcap": 1.5}])
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_stand_for_those_of_the_head_and_add_to_the_vocabulary(chunk, options, weighted):
    hidden, weight, _, targets = inputs()
    options = {**options, "weights": weights_of(targets) if weighted else None}
    values = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([12, 4, 11]), values
    targets[:3] = torch.tensor([4, 11, 12])
    found = linear_cross_entropy(hidden, weight, targets, rows=rows, chunk=chunk, **options)
    whole = torch.stack([*weight[:4], values[1], *weight[5:], values[2], values[0]])
    expected = definition(hidden, whole, None, targets, **options)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    trained = (hidden, weight, values)
    ours = torch.autograd.grad(found[0] * 2.5, trained)
    theirs = torch.autograd.grad(expected[0] * 2.5, trained)
    assert ours[1][4].abs().max() == 0
    assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = inputs()
    loss, _ = linear_cross_entropy(hidden, weight.detach(), targets)
    loss.backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_an_improbable_target_has_a_finite_loss_and_gradient():
    hidden = torch.tensor([[200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]])
    loss, correct = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert_close(loss.item(), 400.0)
    assert correct == 0
    assert_close(hidden.grad, torch.tensor([[2.0]]))


def test_no_labelled_position_gives_a_zero_that_can_be_differentiated():
    hidden, weight, _, targets = inputs(count=0)
    loss, correct = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert (loss, correct) == (0, 0)
    assert hidden.grad.shape == (0, 6)


def test_in_bfloat16_the_sum_is_float32_and_near_the_definition():
    hidden, weight, _, targets = inputs(torch.bfloat16)
    loss, _ = linear_cross_entropy(hidden, weight, targets, chunk=3)
    expected, _ = definition(hidden.double(), weight.double(), None, targets)
    assert loss.dtype == torch.float32
    assert_close(loss.double(), expected, rtol=0.02, atol=0)  # logits have 8 bits


def test_under_autocast_the_products_are_autocasts():
    hidden, weight, _, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = linear_cross_entropy(hidden, weight, targets)
    same, _ = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets)
    assert loss == same


def test_the_loss_of_logits_is_the_sum_of_cross_entropies():
    logits, targets = torch.randn(5, 9), torch.randint(0, 9, (5,))
    loss, correct = logits_cross_entropy(logits, targets)
    assert_close(loss, F.cross_entropy(logits, targets) * 5)
    assert correct == (logits.argmax(-1) == targets).sum()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_1_change_no_bit(dtype):
    hidden, weight, bias, targets = inputs(dtype)
    targets[:3] = (hidden @ weight.T + bias).argmax(-1)[:3]
    trained = (hidden, weight, bias)

    def loss_and_gradients(**options):
        loss, correct = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk=3, **options)
        return loss, correct, torch.autograd.grad(loss, trained)

    plain, weighted = loss_and_gradients(), loss_and_gradients(weights=torch.ones(len(targets)))
    assert_close(weighted[0], plain[0], rtol=0, atol=0)
    assert_close(weighted[2], plain[2], rtol=0, atol=0)
    assert weighted[1] == plain[1] >= 3
    assert (plain[1].dtype, weighted[1].dtype) == (torch.int64, torch.float64)


def test_weights_of_0_give_a_zero_and_zero_gradients():
    hidden, weight, bias, targets = inputs()
    loss, correct = linear_cross_entropy(
        hidden, weight, targets, bias=bias, weights=torch.zeros(len(targets))
    )
    loss.backward()
    assert (loss, correct) == (0, 0)
    assert all(not tensor.grad.any() for tensor in (hidden, weight, bias))


def test_the_loss_of_logits_weighs_each_position():
    logits, targets = torch.randn(6, 9, dtype=torch.float64, requires_grad=True), torch.arange(6)
    with torch.no_grad():
        logits[[0, 3], [0, 3]] = 5.0  # hits
    weights = weights_of(targets)
    loss, correct = logits_cross_entropy(logits, targets, weights)
    losses = -(logits.exp() / logits.exp().sum(-1, keepdim=True))[range(6), range(6)].log()
    expected = (weights.double() * losses).sum()
    assert_close(loss, expected, rtol=1e-12, atol=0)
    hits = (logits.argmax(-1) == targets).double()
    assert_close(correct, (weights.double() * hits).sum(), rtol=1e-7, atol=0)
    ours, theirs = (torch.autograd.grad(value, logits) for value in (loss, expected))
    assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_a_label_is_predicted_one_place_earlier_and_not_across_rows():
    labels = torch.tensor([[-100, 5, 6], [7, -100, 8]])
    weights = torch.tensor([[0.0, 0.5, 0.6], [0.7, 0.0, 0.8]])
    positions, targets, of_targets = labelled_positions(labels, weights=weights)
    assert positions.tolist() == [0, 1, 4]  # 7 is the first of its row: nothing predicts it
    assert targets.tolist() == [5, 6, 8]
    assert_close(of_targets, torch.tensor([0.5, 0.6, 0.8]))
    assert labelled_positions(labels)[2] is None


def test_a_label_is_not_predicted_across_sequences_of_a_flat_batch():
    labels = torch.tensor([[1, 2, 3, 4, 5]])
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    positions, targets, of_targets = labelled_positions(labels, ends, weights=labels / 10)
    assert positions.tolist() == [0, 2, 3]
    assert targets.tolist() == [2, 4, 5]
    assert_close(of_targets, torch.tensor([0.2, 0.4, 0.5]))


def test_the_last_position_of_a_shared_prefix_predicts_the_first_label_of_each_sequence():
    labels = torch.tensor([[-100, -100, 3, 4, 5, -100, 7]])  # prefix, then 3 4 | 5 | -100 7
    ends = torch.tensor([0, 2, 4, 5, 7], dtype=torch.int32)
    positions, targets, of_targets = labelled_positions(labels, ends, 2, labels / 10)
    assert positions.tolist() == [1, 2, 1, 5]
    assert targets.tolist() == [3, 4, 5, 7]
    assert_close(of_targets, torch.tensor([0.3, 0.4, 0.5, 0.7]))


def test_weights_that_are_not_aligned_with_labels_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(1, 3\) where labels has \(1, 5\): an adapter's"):
        labelled_positions(torch.tensor([[1, 2, 3, 4, 5]]), weights=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"final_logit_softcapping": 30.0}, {"softcap": 30.0}),
        ({"final_logit_softcapping": None}, {}),
        ({"logit_scale": 0.0625}, {"scale": 0.0625}),
        ({"logits_scaling": 8.0}, {"scale": 0.125}),
    ],
)
def test_what_lies_between_head_and_logits_is_read_from_the_config(config, options):
    assert head_options(config) == options


def test_a_likely_token_in_a_large_vocabulary_costs_float32_no_accuracy():
    # torch's softmax loses the small terms of a sum with one large: probabilities add up to less
    torch.manual_seed(0)
    hidden, weight = 0.5 * torch.randn(8, 16), 1 + 0.5 * torch.randn(49152, 16)
    weight[:8] = 18 * hidden / hidden.square().sum(1, keepdim=True)  # the target's logit is 18
    targets = torch.arange(8)

    def loss_and_gradient(dtype):
        states = hidden.to(dtype, copy=True).requires_grad_()
        loss, _ = linear_cross_entropy(states, weight.to(dtype), targets)
        loss.backward()
        return loss.detach().double(), states.grad.double()

    found, exact = loss_and_gradient(torch.float32), loss_and_gradient(torch.float64)
    for ours, expected in zip(found, exact, strict=True):
        assert (ours - expected).norm() <= 1e-4 * expected.norm()
