"""Virtual tokens, or a prefix of keys and values, that stand once for all of a flat batch."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from peft_lightning import (
    CausalLMModule,
    PrefixTuning,
    PromptTuning,
    load_adapter,
    load_base_model,
    save_adapter,
)
from rounding import BACKWARD, assert_near, rounding_error
from tiny import ARCHITECTURES
from tiny_run import flat_batch

LENS = [5, 13, 1, 20]  # above Mistral's and Gemma's window of 8, too
N = 3


def loaded(folder, **options):
    torch.manual_seed(0)
    adapter = PromptTuning(N, "SAMPLE_VOCAB")
    module = CausalLMModule(str(folder), adapter, **options)
    module.configure_model()
    return module


def loss_and_gradient(module, shared, dtype=torch.float32):
    module.model.to(dtype)
    prompt = module.model.prompt_embeddings
    prompt.grad = None
    module.outputs._shares = shared
    nll, tokens = module.nll(flat_batch(LENS))
    assert tokens == sum(LENS)  # the last virtual token predicts the first of the text
    nll.backward()
    return nll.detach(), prompt.grad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_stands_once_and_gives_what_a_prompt_before_each_gives(bases, architecture):
    module = loaded(bases[architecture])
    once, gradient = loss_and_gradient(module, None)
    assert module.outputs._shares
    apart, expected = loss_and_gradient(module, False)
    assert_near(once, apart, products=BACKWARD)
    error = rounding_error(torch.float32, products=BACKWARD)
    assert (gradient - expected).norm() < error * expected.norm()


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])  # float64 in every operation
def test_loss_and_gradient_are_equal_in_float64(bases, architecture):
    module = loaded(bases[architecture])
    once, apart = (loss_and_gradient(module, shared, torch.float64) for shared in (True, False))
    assert once[1].dtype == torch.float64
    assert_close(once, apart, rtol=1e-9, atol=1e-12)


def test_only_the_prompt_and_the_text_go_through_the_layers(bases):
    module, widths = loaded(bases["llama"]), []
    module.nll(flat_batch(LENS))
    module.model.model.layers[0].register_forward_hook(
        lambda layer, given, out: widths.append(given[0].shape[1])
    )
    module.nll(flat_batch(LENS))
    assert widths == [N + sum(LENS)]


def test_a_bfloat16_gradient_is_summed_once(bases):
    module = loaded(bases["llama"], dtype="bfloat16")
    exact = loss_and_gradient(loaded(bases["llama"], dtype="float32"), True)[1]
    errors = [
        (loss_and_gradient(module, shared, torch.bfloat16)[1].float() - exact).norm()
        for shared in (True, False)
    ]
    assert errors[0] < 1.2 * errors[1]


def prefixed(folder, to, **options):
    """Return a module that starts from a prefix of random keys and values."""
    model = load_base_model(str(folder))
    adapter = PrefixTuning(N)
    adapter.attach(model, initialise=False)
    generator = torch.Generator().manual_seed(2)
    adapter.state_dict(model)["prompt_embeddings"].normal_(generator=generator)
    save_adapter(adapter, model, to)
    module = CausalLMModule(str(folder), init_from=str(to), **options)
    module.configure_model()
    return module


def nll_alone(model, adapter):
    """Return the summed loss of each sequence on its own, by transformers' forward."""
    total, flat = 0.0, flat_batch(LENS)
    for ids in flat["input_ids"].split(LENS, dim=1):
        logits = model(**adapter.prepare_inputs(model, {"input_ids": ids})).logits[0, :-1]
        total = total + F.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return total


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_sequence_sees_the_prefix_and_not_its_neighbours(bases, architecture, tmp_path):
    module = prefixed(bases[architecture], tmp_path / "prefix")
    exact = architecture in ("gpt2", "opt")
    module.model.to(torch.float64 if exact else torch.float32)
    prompt = module.model.prompt_embeddings
    nll, _ = module.nll(flat_batch(LENS))
    (found,) = torch.autograd.grad(nll, prompt)
    alone = AutoModelForCausalLM.from_pretrained(
        bases[architecture], attn_implementation="sdpa", dtype=prompt.dtype
    )
    load_adapter(alone.eval(), tmp_path / "prefix", trainable=True)
    expected = nll_alone(alone, module.adapter)
    (gradient,) = torch.autograd.grad(expected, alone.prompt_embeddings)
    assert_near(nll, expected)
    error = rounding_error(found.dtype, products=BACKWARD)
    assert (found - gradient).norm() < error * gradient.norm()


def test_a_prefix_without_our_attention_stands_before_padded_rows(bases, tmp_path):
    module = prefixed(bases["llama"], tmp_path / "prefix", attn_implementation="sdpa")
    assert not module.outputs.takes_flat(flat_batch(LENS))
    assert_near(module.nll(flat_batch(LENS))[0], nll_alone(module.model, module.adapter))


def test_a_prefix_and_activation_checkpointing_exclude_each_other(bases, tmp_path):
    with pytest.raises(ValueError, match="activation_checkpointing does not go with PrefixTuning"):
        prefixed(bases["llama"], tmp_path / "prefix", activation_checkpointing=True)


def carrying(layer, args, kwargs, out):
    """Add the mean of a sequence so far, as a layer with a state would."""
    parts = out.split(list(kwargs.get("seq_lens", out.shape[1:2])), dim=1)
    means = [p.cumsum(1) / torch.arange(1, p.shape[1] + 1)[None, :, None] for p in parts]
    return out + torch.cat(means, dim=1)


@pytest.mark.parametrize("case", ["a layer with a state", "transformers' own attention"])
def test_where_it_is_not_exact_the_prompt_stands_before_each(bases, case):
    if case == "a layer with a state":
        module = loaded(bases["llama"])
        layer = module.model.model.layers[0]
        layer.register_forward_hook(carrying, with_kwargs=True)
    else:
        module = loaded(bases["llama"], attn_implementation="sdpa")
    found = loss_and_gradient(module, None)
    assert not module.outputs._shares
    assert_near(found, loss_and_gradient(module, False), products=BACKWARD)
