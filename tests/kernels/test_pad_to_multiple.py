"""Flat batches that padding brings to whole blocks where products are compiled per length."""

import os
import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

from peft_lightning import CausalLMModule, LoRA, PromptTuning, loss
from peft_lightning.kernels import float32_compute
from peft_lightning.kernels.machine import Machine
from peft_lightning.kernels.native.stored import output_dtype
from peft_lightning.kernels.pad_to_multiple import BLOCK
from rounding import BACKWARD, assert_near
from tiny import ARCHITECTURES
from tiny_run import flat_batch

ADAPTERS = {
    "LoRA": LoRA(r=2, init_lora_weights=False),
    "a prompt": PromptTuning(3, "SAMPLE_VOCAB"),
}
LENS = [5, 13, 1, 20]


@pytest.fixture
def always(monkeypatch):
    """Compute in whole blocks in any dtype."""
    return lambda: monkeypatch.setattr(loss, "compiles_products", lambda weight: True)


def loaded(folder, adapter="LoRA", **options):
    torch.manual_seed(0)
    module = CausalLMModule(str(folder), ADAPTERS[adapter], **options)
    module.configure_model()
    return module


def widths_of(module):
    """Return a list to which the first layer adds how many tokens it is given."""
    widths = []
    module.model.model.layers[0].register_forward_hook(
        lambda layer, given, out: widths.append(given[0].shape[1])
    )
    return widths


def loss_and_gradients(module):
    trained = module.trainable_parameters()
    nll, tokens = module.nll(flat_batch(LENS))
    return nll, tokens, torch.autograd.grad(nll, trained), module.correct


@pytest.mark.parametrize(
    ("adapter", "shared"), [("LoRA", None), ("a prompt", None), ("a prompt", False)]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_loss_and_no_gradient(bases, architecture, adapter, shared, always):
    module = loaded(bases[architecture], adapter)
    module.outputs._shares = shared  # None: once for all sequences, as that is exact
    plain = loss_and_gradients(module)
    always()
    assert_near(loss_and_gradients(module), plain, products=BACKWARD)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])  # float64 in every operation
def test_padding_changes_nothing_in_float64(bases, architecture, adapter, always):
    module = loaded(bases[architecture], adapter)
    module.model.double()
    plain = loss_and_gradients(module)
    always()
    assert_close(loss_and_gradients(module), plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_half_precision_on_a_cpu_is_computed_in_whole_blocks(bases, adapter, monkeypatch):
    amx = Machine(flags=frozenset({"amx_bf16"}))  # elsewhere such weights multiply in float32
    monkeypatch.setattr(float32_compute, "find_machine", lambda: amx)
    module = loaded(bases["llama"], adapter, dtype="bfloat16")
    module.nll(flat_batch(LENS))  # the checks of a first batch
    widths = widths_of(module)
    for lens in (LENS, [BLOCK - 3], [BLOCK], [BLOCK + 1]):
        module.nll(flat_batch(lens))
    prompt = 0 if adapter == "LoRA" else 3
    expected = [prompt + n for n in (sum(LENS), BLOCK - 3, BLOCK, BLOCK + 1)]
    if output_dtype(module.model.get_input_embeddings()) == torch.bfloat16:
        expected = [-(-n // BLOCK) * BLOCK for n in expected]
    # else the processor has no bfloat16 products, and float32's are computed as they are
    assert widths == expected


def test_other_precisions_are_computed_without_padding(bases):
    module = loaded(bases["llama"])
    module.nll(flat_batch(LENS))
    widths = widths_of(module)
    module.nll(flat_batch(LENS))
    assert widths == [sum(LENS)]


def test_under_autocast_a_float32_base_is_computed_in_whole_blocks(bases):
    module = loaded(bases["llama"])
    module.nll(flat_batch(LENS))
    widths = widths_of(module)
    with torch.autocast("cpu", torch.bfloat16):
        module.nll(flat_batch(LENS))
    assert widths == [BLOCK]


@pytest.mark.parametrize(
    ("given", "kept", "module"),
    [(None, "256", "module"), ("1024", "1024", "kernels.pad_to_multiple")],
)
def test_how_many_products_are_kept_is_the_environments_to_say(given, kept, module):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    environment = {k: v for k, v in os.environ.items() if k != name}
    if given is not None:
        environment[name] = given
    code = f"import os, peft_lightning.{module}; print(os.environ[{name!r}])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kept
