"""Bases of two bytes a weight that compute in float32, as a float32 model of those weights does."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

import rounding
from exactness import sgd
from peft_lightning import CausalLMModule, LoRA, PrefixTuning, PromptTuning
from peft_lightning.adapters.merge import merged
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.kernels import float32_compute
from peft_lightning.kernels.float32_compute import compute_as_stored, compute_in_float32
from peft_lightning.kernels.machine import Machine
from peft_lightning.kernels.native import stored
from tiny import ARCHITECTURES, tiny_model
from tiny_run import byte_tokenizer, fit, flat_batch, write_base

HALF = [torch.bfloat16, torch.float16]
IDS = torch.arange(3, 43)[None]
ADAPTERS = {
    "all linear layers": LoRA(r=2, init_lora_weights=False),
    "with dropout": LoRA(r=2, init_lora_weights=False, lora_dropout=0.2),
    "DoRA": LoRA(r=2, init_lora_weights=False, use_dora=True),
    "PiSSA": LoRA(r=2, init_lora_weights="pissa"),
    "embeddings": LoRA(r=2, init_lora_weights=False, target_modules=["embed_tokens", "q_proj"]),
    "whole modules": LoRA(
        r=2, init_lora_weights=False, modules_to_save=["lm_head", "norm", "embed_tokens", "up_proj"]
    ),
    "tokens": LoRA(r=2, init_lora_weights=False, trainable_token_indices=[*range(5, 60)]),
    "upper layer": LoRA(r=2, init_lora_weights=False, layers_to_transform=[1]),
    "a prompt": PromptTuning(3, "SAMPLE_VOCAB"),
    "a prefix": PrefixTuning(3),
}


@pytest.fixture(autouse=True)
def without_bfloat16(monkeypatch):
    """Compute as on a processor without fast products of bfloat16."""
    monkeypatch.setattr(float32_compute, "find_machine", Machine)


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> Path:
    """A base of bfloat16 weights whose folder holds them as float32."""
    folder = write_base(tmp_path_factory.mktemp("rounded"))
    file = folder / "model.safetensors"
    tensors = {name: t.bfloat16().float() for name, t in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return folder


def frozen(architecture, dtype=torch.float32):
    return tiny_model(architecture, dtype).requires_grad_(False)


def module_of(folder, adapter, dtype, **options):
    torch.manual_seed(0)
    module = CausalLMModule(str(folder), LoRA(r=2), dtype=dtype, **options)
    module.adapter = adapter
    if isinstance(adapter, PrefixTuning):  # it starts from a folder only
        own = type(adapter).attach
        module.configured_adapter = module.adapter = adapter
        object.__setattr__(adapter, "attach", lambda model: own(adapter, model, initialise=False))
    module.configure_model()
    generator = torch.Generator().manual_seed(1)
    for tensor in adapter.state_dict(module.model).values():
        tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return module


def padded_batch():
    ids, mask = IDS.reshape(4, 10), torch.ones(4, 10, dtype=torch.long)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def loss_and_gradients(module, batches):
    torch.manual_seed(2)  # of a dropout
    losses = []
    for batch in batches:
        nll, _, _ = module.outputs.nll(batch)
        nll.backward()
        losses.append(nll.detach())
    return [*losses, *(p.grad for p in module.trainable_parameters())]


LAYOUTS = {
    "flat": [flat_batch([5, 13, 1, 20]), flat_batch([9])],
    "padded": [padded_batch()],
}


def exact(folder, adapter, batches):
    """Return the losses and gradients in float64."""
    return loss_and_gradients(module_of(folder, adapter, "float32").double(), batches)


@functools.cache
def exact_of(folder, name, layout):
    """Return them once for tests with and without the compiled kernels, which leave float64."""
    return exact(folder, ADAPTERS[name], LAYOUTS[layout])


# ---- forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_a_float32_model_of_the_same_weights(either_way, architecture, dtype):
    model = compute_in_float32(frozen(architecture, dtype))
    plain = frozen(architecture, dtype).float()
    large = [p for p in model.parameters() if p.ndim > 1]
    assert {p.dtype for p in large} == {dtype}
    for tokens in (1, 7, 16, 40):
        found, want = model(IDS[:, :tokens]).logits, plain(IDS[:, :tokens]).logits
        assert found.dtype == torch.float32
        if tokens > stored.FEW:  # the same products
            assert torch.equal(found, want)
        rounding.assert_near(found, want)


def test_the_kernels_read_every_number_of_two_bytes(with_kernels):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in HALF:
        numbers = bits.view(dtype)
        numbers = torch.where(numbers.isfinite(), numbers, 0).view(-1, 1)
        x, out = torch.ones(1, 1), torch.empty(1, len(numbers))
        assert stored._multiply_few(x, numbers, None, out)
        assert torch.equal(out[0], numbers[:, 0].float())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (7, 130), (64, 31)])
@pytest.mark.parametrize("dtype", HALF)
def test_a_few_rows_are_multiplied_as_many_are(with_kernels, monkeypatch, dtype, shape, bias):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    b = torch.randn(shape[0], generator=generator) if bias else None
    for rows in range(1, 20):
        x = torch.randn(rows, shape[1], generator=generator)
        want = nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
        found = stored.linear(x, weight, b).double()
        rounding.assert_near(found, want, dtype=torch.float32, terms=shape[1], products=1)


def test_a_model_computes_as_it_is_stored_again_bit_for_bit():
    model, plain = frozen("opt", torch.bfloat16), frozen("opt", torch.bfloat16)
    compute_in_float32(compute_in_float32(model))
    assert base_fingerprint(model) == base_fingerprint(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    compute_as_stored(model)
    assert not any("forward" in layer.__dict__ for layer in model.modules())
    for (name, one), other in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16])
def test_on_another_device_a_weight_is_converted_there(products):
    """As under autocast over a float32 base on a GPU; a tensor of another device is an error."""
    x = torch.empty(20, 8, dtype=products, device="meta", requires_grad=True)
    weight = torch.empty(6, 8, dtype=torch.float16, device="meta")
    found = stored.linear(x, weight)
    assert (found.dtype, found.device.type) == (products, "meta")
    assert torch.autograd.grad(found.sum(), x)[0].shape == x.shape


def test_a_copy_of_a_layer_uses_its_own_weight():
    layer = compute_in_float32(nn.Linear(32, 8, bias=False).bfloat16().requires_grad_(False))
    other = copy.deepcopy(layer)
    other.weight.zero_()
    x = torch.randn(3, 32)
    assert torch.equal(other(x), torch.zeros(3, 8))
    assert layer(x).any()
    del layer.weight  # and it is let go of at once: there is no circle


# ---- backward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ADAPTERS)
def test_losses_and_gradients_are_those_of_float32(either_way, rounded, name, layout):
    results = []
    for dtype in ("float32", "bfloat16"):
        module = module_of(rounded, ADAPTERS[name], dtype)
        results.append(loss_and_gradients(module, LAYOUTS[layout]))
    assert module.model.model.layers[0].mlp.down_proj.weight.dtype == torch.bfloat16
    assert all(tensor is not None and tensor.any() for tensor in results[1])
    rounding.assert_as_exact(*results[::-1], exact_of(rounded, name, layout))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "phi3"])
def test_gradients_of_other_architectures_are_those_of_float32(architecture):
    results = []
    for widen in (compute_in_float32, nn.Module.float, nn.Module.double):
        model = widen(frozen(architecture, torch.bfloat16))
        torch.manual_seed(0)
        adapter = LoRA(r=2, init_lora_weights=False)
        adapter.attach(model)
        model(IDS, labels=IDS).loss.backward()
        results.append([p.grad for p in model.parameters() if p.requires_grad])
    rounding.assert_as_exact(*results)


def test_activation_checkpointing_and_plain_modules_give_the_same_gradients(rounded, monkeypatch):
    adapter, batches = ADAPTERS["all linear layers"], [flat_batch([30, 20])]

    def run(**options):
        return loss_and_gradients(module_of(rounded, adapter, "bfloat16", **options), batches)

    plain = run()
    assert_close(run(activation_checkpointing=True), plain)
    monkeypatch.setattr("peft_lightning.adapters.lora.layers.LoRALinear.path", "plain")
    rounding.assert_as_exact(run(), plain, exact(rounded, adapter, batches))


@pytest.mark.parametrize("name", ["all linear layers", "a prompt", "upper layer"])
def test_autograd_keeps_no_converted_weight_and_the_head_is_never_whole(rounded, name, monkeypatch):
    module = module_of(rounded, ADAPTERS[name], "bfloat16")
    monkeypatch.setattr(stored, "BLOCK", 32 * 48)
    sizes, scratch = [], stored._scratch
    monkeypatch.setattr(stored, "_scratch", lambda n, dtype: sizes.append(n) or scratch(n, dtype))
    weights = {p.shape for p in module.model.parameters() if p.dtype == torch.bfloat16}
    weights |= {shape[::-1] for shape in weights}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        nll, _, _ = module.outputs.nll(flat_batch([25, 26]))
    nll.backward()
    assert not [t for t in kept if t.shape in weights and t.dtype == torch.float32]
    assert sizes
    assert max(sizes) <= 32 * 48 < module.model.lm_head.weight.numel()


def test_a_blocks_size_changes_nothing_but_rounding(rounded, monkeypatch):
    adapter, batches = ADAPTERS["whole modules"], [flat_batch([30, 20])]

    def run():
        return loss_and_gradients(module_of(rounded, adapter, "bfloat16"), batches)

    whole = run()
    monkeypatch.setattr(stored, "BLOCK", 100)
    rounding.assert_as_exact(run(), whole, exact(rounded, adapter, batches))


# ---- runs, answers, files ----------------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_a_run_in_32_true_over_bfloat16_weights_is_one_in_float32(rounded, rows, tmp_path, cached):
    found = []
    adapter = LoRA(r=2, layers_to_transform=[1]) if cached else LoRA(r=2)
    for dtype in ("float32", "bfloat16"):
        module = {"dtype": dtype, "cache_hidden_states": cached, "optimizer": sgd}
        data = {"val": str(rows)}
        run = fit(rounded, rows, tmp_path / dtype, module=module, data=data, adapter=adapter)
        found.append(run.callback_metrics["val/loss"])
        ckpt = tmp_path / dtype / "checkpoints" / "last.ckpt"
        found.append(load_file(ckpt / "adapter_model.safetensors"))
    assert run.lightning_module.model.lm_head.weight.dtype == torch.bfloat16
    arithmetic = {"products": rounding.BACKWARD, "steps": run.global_step}
    rounding.assert_near(found[2:], found[:2], **arithmetic)


def test_bfloat16_products_stay_where_the_run_asks_for_them(rounded, rows, tmp_path):
    module = {"dtype": "bfloat16"}
    run = fit(rounded, rows, tmp_path / "run", module=module, max_epochs=1, precision="bf16-mixed")
    layers = run.lightning_module.model.modules()
    assert not any(stored.stored_forward(layer) for layer in layers)


@pytest.mark.parametrize("dtype", HALF)
def test_greedy_answers_are_those_of_float32(either_way, dtype):
    rows, answers = [[5, 9, 3], [7] * 20, [8, 4]], []
    for widened in (True, False):
        model = frozen("llama", dtype)
        model = compute_in_float32(model) if widened else model.float()
        answers.append(generate_tokens(model, None, byte_tokenizer(), rows, 30))
    assert answers[0] == answers[1]


def test_merged_weights_are_those_that_are_stored_and_detaching_gives_the_base_back(rounded):
    plain = load_base_model(str(rounded), dtype="bfloat16")
    module = module_of(rounded, ADAPTERS["all linear layers"], "bfloat16")
    model = module.model
    with merged(model):
        assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
        assert model(IDS).logits.dtype == torch.float32
    module.adapter.detach(model)
    compute_as_stored(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, plain.state_dict()[name]), name


def test_nothing_is_changed_where_weights_are_float32_or_the_processor_multiplies(
    rounded, monkeypatch
):
    model = load_base_model(str(rounded))
    float32_compute.compute_as_the_run(model, None)
    assert not any(stored.stored_forward(layer) for layer in model.modules())
    amx = Machine(flags=frozenset({"amx_bf16"}))
    monkeypatch.setattr(float32_compute, "find_machine", lambda: amx)
    for dtype, computed in (("bfloat16", torch.bfloat16), ("float16", torch.float32)):
        model = load_base_model(str(rounded), dtype=dtype)
        float32_compute.compute_as_the_run(model, None)
        assert model(IDS).logits.dtype == computed
    assert json.loads((rounded / "config.json").read_text())["dtype"] == "float32"
