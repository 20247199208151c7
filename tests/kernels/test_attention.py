"""Attention over flat batches against its definition in float64."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from peft_lightning.kernels.attention import attention_per_sequence
from peft_lightning.kernels.attention_cpu import BLOCK
from peft_lightning.kernels.isolation import isolation_error

MODULE = SimpleNamespace(is_causal=True, training=False, num_key_value_groups=2)


def definition(query, key, value, lens, scaling=None, window=None, softcap=None, sinks=None):
    """Return (1, T, H, Dv): every query over the keys of its sequence up to itself."""
    groups = query.shape[1] // key.shape[1]
    total = sum(lens)
    sequence = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens))
    place = torch.arange(total)
    seen = (sequence[:, None] == sequence) & (place[:, None] >= place)
    if window is not None:
        seen &= place[:, None] - place < window
    out = []
    for head in range(query.shape[1]):
        q, k, v = query[0, head], key[0, head // groups], value[0, head // groups]
        scores = q @ k.T * (scaling or q.shape[-1] ** -0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.where(seen, torch.exp(scores), 0.0)
        total_weight = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total_weight = total_weight + torch.exp(sinks[head])
        out.append(weights / total_weight @ v)
    return torch.stack(out, dim=1)[None]


def tensors(total, heads=4, shared=2, dim=8, value_dim=8):
    torch.manual_seed(0)
    sizes = [(heads, dim), (shared, dim), (shared, value_dim)]
    return [torch.randn(1, h, total, d, dtype=torch.float64, requires_grad=True) for h, d in sizes]


LENS = [3, 1, BLOCK + 5, 2 * BLOCK]
CASES = {
    "plain": ({}, {}),
    "scaling": ({"scaling": 0.7}, {"scaling": 0.7}),
    "window shorter than a block": ({"window": 5}, {"sliding_window": 5}),
    "window longer than a block": ({"window": BLOCK + 9}, {"sliding_window": BLOCK + 9}),
    "softcap": ({"softcap": 1.5}, {"softcap": 1.5}),
    "softcap and window": ({"softcap": 1.5, "window": 7}, {"softcap": 1.5, "sliding_window": 7}),
    "sinks": (
        {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
        {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", [(4, 2, 8, 8), (3, 3, 4, 6), (4, 1, 8, 8)], ids=str)
def test_outputs_and_gradients_are_those_of_the_definition(case, heads):
    theirs, ours = CASES[case]
    if "sinks" in theirs and heads[0] != 4:
        pytest.skip("four sinks")
    parts = tensors(sum(LENS), *heads)
    out, _ = attention_per_sequence(MODULE, *parts, None, seq_lens=LENS, **ours)
    expected = definition(*parts, LENS, **theirs)
    assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), parts)
    assert_close(
        found, torch.autograd.grad((expected * weight).sum(), parts), rtol=1e-9, atol=1e-11
    )


PREFIX = 6


def with_prefix(x, lens):
    """Return the prefix, then each sequence with the prefix before it."""
    prefix, *sequences = x.split(lens, dim=2)
    return [prefix, *(torch.cat([prefix, s], dim=2) for s in sequences)]


# a dropout too small to drop anything takes the way of other devices
@pytest.mark.parametrize("dropout", [0.0, 1e-300], ids=["CPU", "other devices"])
@pytest.mark.parametrize("queried", [True, False], ids=["first sequence", "cache"])
@pytest.mark.parametrize("case", CASES)
def test_a_prefix_is_seen_as_if_every_sequence_began_with_it(case, queried, dropout):
    theirs, ours = CASES[case]
    parts = tensors(PREFIX + sum(LENS))
    lens = [PREFIX, *LENS]
    whole = [torch.cat(with_prefix(x, lens), dim=2) for x in parts]
    apart = definition(*whole, [PREFIX, *(PREFIX + n for n in LENS)], **theirs)
    pieces = apart.split([PREFIX, *(PREFIX + n for n in LENS)], dim=1)
    expected = torch.cat([piece[:, -n:] for piece, n in zip(pieces, lens, strict=True)], dim=1)
    query, options = parts[0], {"seq_lens": lens, "prefix_len": PREFIX}
    if not queried:  # the keys are those of prefix tuning: they have no queries
        expected, query, options = expected[:, PREFIX:], query[:, :, PREFIX:], {"seq_lens": LENS}
    out, _ = attention_per_sequence(
        MODULE, query, *parts[1:], None, dropout=dropout, **options, **ours
    )
    assert_close(out, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), parts)
    assert_close(
        found, torch.autograd.grad((expected * weight).sum(), parts), rtol=1e-9, atol=1e-11
    )


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize(
    "heads", [(4, 2, 8, 8), (3, 3, 4, 6), (9, 3, 64, 64), (2, 1, 80, 16)], ids=str
)
@pytest.mark.parametrize("case", [name for name in CASES if name != "sinks"])
def test_lower_precision_is_near_the_definition(case, heads, dtype, tolerance):
    theirs, options = CASES[case]
    parts = [t.detach().to(dtype).requires_grad_() for t in tensors(sum(LENS), *heads)]
    exact = [t.detach().double().requires_grad_() for t in parts]
    out, _ = attention_per_sequence(MODULE, *parts, None, seq_lens=LENS, **options)
    expected = definition(*exact, LENS, **theirs)
    assert out.dtype == dtype
    found = torch.autograd.grad(out.double().square().sum(), parts)
    gradients = torch.autograd.grad(expected.square().sum(), exact)
    for ours, theirs in zip([out, *found], [expected, *gradients], strict=True):
        assert ours.dtype == dtype
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < tolerance


def test_the_precision_of_other_products_is_left_alone():
    before = torch.backends.mkldnn.matmul.fp32_precision
    parts = [t.detach().bfloat16() for t in tensors(9)]
    attention_per_sequence(MODULE, *parts, None, seq_lens=[9])
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"s_aux": torch.zeros(4, dtype=torch.float64)}]
)
def test_without_sequences_a_mask_says_what_is_seen(options):
    query, key, value = tensors(6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
    out, _ = attention_per_sequence(MODULE, query, key, value, mask, **options)
    names = {"softcap": "softcap", "s_aux": "sinks"}
    theirs = {names[k]: v for k, v in options.items()}
    assert_close(out, definition(query, key, value, [6], **theirs), rtol=1e-6, atol=1e-6)


def test_a_model_that_mixes_sequences_is_found_out():
    table = torch.randn(20, 4)
    cpu = torch.device("cpu")

    def isolated(batch):
        start = batch["position_ids"][0] == 0
        sums = table[batch["input_ids"][0]].cumsum(0)
        first = torch.where(start)[0][torch.cumsum(start, 0) - 1]
        return (sums - sums[first] + table[batch["input_ids"][0, first]])[None]

    def leaking(batch):
        return table[batch["input_ids"][0]].cumsum(0)[None]

    def misplaced(batch):
        places = torch.arange(batch["input_ids"].shape[1])
        return (table[batch["input_ids"][0]] + places[:, None])[None]

    assert isolation_error(isolated, 20, cpu) is None
    assert "moved the outputs" in isolation_error(leaking, 20, cpu)
    assert "differ by" in isolation_error(misplaced, 20, cpu)
