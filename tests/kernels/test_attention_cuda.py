"""The GPU kernel for sequences of varying length: when it is taken, and what it is given."""

import pytest
import torch
from torch.testing import assert_close

from peft_lightning.kernels.attention import attention_per_sequence
from peft_lightning.kernels.attention_cuda import has_varlen, takes_varlen, varlen_inputs

LENS = [5, 1, 9]


def heads(dtype=torch.bfloat16, size=16, value_size=None, device="cpu"):
    torch.manual_seed(0)
    sizes = (4, size), (2, size), (2, value_size or size)
    return [torch.randn(1, h, sum(LENS), d).to(device, dtype) for h, d in sizes]


def test_it_is_taken_within_the_kernels_limits_only():
    assert takes_varlen(*heads())
    assert takes_varlen(*heads(torch.float16))
    assert not takes_varlen(*heads(torch.float32))
    assert not takes_varlen(*heads(size=12))
    assert not takes_varlen(*heads(size=264))
    assert not takes_varlen(*heads(value_size=8))
    query, key, value = heads()
    assert not takes_varlen(query, torch.cat((key, key), 2), torch.cat((value, value), 2))


def test_a_cpu_does_not_have_it():
    assert not has_varlen(torch.device("cpu"))


def test_its_arguments_mean_what_ours_do():
    """Written out: the kernel's window counts the keys before a query, ours the query too."""
    query, key, value = heads(torch.float64)
    ends = torch.tensor([0, 5, 6, 15], dtype=torch.int32)
    for window in (None, 3):
        given = varlen_inputs(query, key, value, ends, 9, 0.3, window)
        left, right = given["window_size"]
        assert (given["max_q"], given["enable_gqa"], right) == (9, True, 0)
        out = torch.zeros_like(given["query"])  # (T, H, D)
        for start, end in zip(given["cu_seq_q"][:-1], given["cu_seq_q"][1:], strict=True):
            for t in range(start, end):
                first = start if left < 0 else max(start, t - left)
                for head in range(4):
                    keys, values = (given[n][first : t + 1, head // 2] for n in ("key", "value"))
                    weights = (keys @ given["query"][t, head] * given["scale"]).softmax(0)
                    out[t, head] = weights @ values
        wanted, _ = attention_per_sequence(
            None, query, key, value, None, 0.3, sliding_window=window, seq_lens=LENS
        )
        assert_close(out[None], wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 3])
def test_it_gives_what_each_sequence_alone_gives(window):
    ends = torch.tensor([0, 5, 6, 15], dtype=torch.int32, device="cuda")
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        inputs = [x.requires_grad_() for x in heads(dtype, device=device)]
        flat = {"seq_lens": LENS, "cu_seq_lens_q": ends, "max_length_q": 9}
        out, _ = attention_per_sequence(None, *inputs, None, 0.3, sliding_window=window, **flat)
        grads = torch.autograd.grad(out.float().square().sum(), inputs)
        results.append([x.cpu().float() for x in (out, *grads)])
    assert_close(*results, rtol=3e-2, atol=3e-2)
