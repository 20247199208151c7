"""Loss and gradients on every device, against transformers' own code in float64 on a CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from devices import draw_adapter, on_every_device, relative_error
from peft_lightning import CausalLMModule, LoRA, PromptTuning
from peft_lightning.kernels import attention
from peft_lightning.kernels.attention_cuda import has_varlen
from tiny_run import flat_batch, write_base

LENS = [5, 13, 1, 20]  # above Mistral's and Gemma's window of 8, too
DTYPES = ["float32", "bfloat16"]
ADAPTERS = {
    "LoRA": LoRA(r=4, target_modules="all-linear"),
    "DoRA": LoRA(r=4, use_dora=True),
    "LoRA with a trained head": LoRA(r=4, modules_to_save=["lm_head"]),
    "LoRA with trained tokens": LoRA(r=4, trainable_token_indices=[5, 70, 71]),
    "prompt tuning": PromptTuning(num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Bases whose weights bfloat16 holds exactly, so that all precisions compute with the same."""
    folder = tmp_path_factory.mktemp("bases")
    names = ("llama", "gpt2", "mistral", "gemma3")
    return {name: write_base(folder / name, name, torch.bfloat16) for name in names}


def to_device(batch, device):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def half(device, dtype):
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def gradients(model):
    """Return the gradients of all that is trained, by name."""
    named = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in named.values())
    return named


def ours(base, adapter, device, dtype, **options):
    """Return loss and gradients of a flat batch through the module."""
    module = CausalLMModule(str(base), adapter, dtype=dtype, **options)
    module.configure_model()
    draw_adapter(module.adapter, module.model)
    module.to(device)
    with half(device, dtype):
        nll, tokens = module.nll(to_device(flat_batch(LENS), device))
    assert nll.device.type == device
    (nll / tokens).backward()
    return nll.detach() / tokens, gradients(module.model)


def theirs(base, adapter, device, dtype):
    """Return them of each row alone, through transformers' own forward and autograd."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()
    model.requires_grad_(False)
    adapter.attach(model)
    draw_adapter(adapter, model)
    model.to(device)
    batch, total, tokens = flat_batch(LENS), 0.0, 0
    for ids in batch["input_ids"][0].split(LENS):
        row = {"input_ids": ids[None], "attention_mask": torch.ones(1, len(ids)).long()}
        inputs = adapter.prepare_inputs(model, to_device({**row, "labels": ids[None]}, device))
        labels = inputs.pop("labels")[0, 1:]
        with half(device, dtype):
            logits = model(**inputs, use_cache=False).logits[0, :-1]
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = total + F.cross_entropy(wide, labels, ignore_index=-100, reduction="sum")
        tokens += int((labels != -100).sum())
    (total / tokens).backward()
    return total.detach() / tokens, gradients(model)


def check(base, adapter, device, dtype, **options):
    """Require ours to be about as near to float64 as transformers' own in the same precision."""
    loss, found = ours(base, adapter, device, dtype, **options)
    their_loss, their_found = theirs(base, adapter, device, dtype)
    exact_loss, exact = theirs(base, adapter, "cpu", "float64")
    eps = torch.finfo(getattr(torch, dtype)).eps
    # both are sums of rounding errors of the same products, in another order
    allowed = 2 * relative_error(their_found, exact) + 4 * eps
    assert relative_error(found, exact) <= allowed
    assert allowed < 0.2, "the reference is too coarse to tell anything"
    gaps = [abs(float(x) - float(exact_loss)) / float(exact_loss) for x in (loss, their_loss)]
    assert gaps[0] <= 2 * gaps[1] + 4 * eps


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "gemma3"])
def test_a_flat_batch_has_the_gradients_of_its_rows_alone(bases, architecture, dtype, device):
    check(bases[architecture], ADAPTERS["LoRA"], device, dtype)


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "LoRA"])
def test_every_kind_of_adapter_has_the_gradients_of_rows_alone(bases, name, dtype, device):
    check(bases["llama"], ADAPTERS[name], device, dtype)


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_packed_mask_has_the_gradients_of_rows_alone(bases, dtype, device):
    check(bases["llama"], ADAPTERS["LoRA"], device, dtype, attn_implementation="sdpa")


@on_every_device
def test_recomputed_activations_have_the_gradients_of_kept_ones(bases, device):
    adapter = LoRA(r=4, lora_dropout=0.3)  # the same numbers are dropped the second time
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        module = CausalLMModule(
            str(bases["llama"]), adapter, dtype="float32", activation_checkpointing=recomputed
        )
        module.configure_model()
        draw_adapter(module.adapter, module.model)
        module.to(device)
        module.nll(to_device(flat_batch([3]), device))  # the checks of a first batch
        torch.manual_seed(1)
        nll, _ = module.nll(to_device(flat_batch(LENS), device))
        nll.backward()
        results.append((nll.detach(), gradients(module.model)))
    assert_close(results[0][0], results[1][0])
    assert relative_error(results[1][1], results[0][1]) < 16 * torch.finfo(torch.float32).eps


@on_every_device
def test_virtual_tokens_stand_once_for_all_rows_and_give_the_same(bases, device):
    module = CausalLMModule(str(bases["llama"]), ADAPTERS["prompt tuning"], dtype="float32")
    module.configure_model()
    module.to(device)
    prompt, found = module.model.prompt_embeddings, []
    for shared in (None, False):  # None: found out, by a check of the model
        module.outputs._shares, prompt.grad = shared, None
        module.nll(to_device(flat_batch(LENS), device))[0].backward()
        found.append({"prompt": prompt.grad.clone()})
        assert module.outputs._shares is (shared is None)
    assert relative_error(*found) < 1e-4  # float32, sums of 39 tokens' gradients in other orders


@on_every_device
@pytest.mark.parametrize("way", ["pissa", "olora"])
def test_an_adapter_made_from_the_bases_weights_starts_as_the_base(bases, way, device):
    model = AutoModelForCausalLM.from_pretrained(bases["llama"], dtype=torch.float32).to(device)
    model.requires_grad_(False).eval()
    ids = torch.arange(4, 24, device=device)[None]
    before, weights = model(ids).logits, {n: p.clone() for n, p in model.named_parameters()}
    adapter = LoRA(r=4, init_lora_weights=way)
    adapter.attach(model)
    assert_close(model.eval()(ids).logits, before, rtol=1e-4, atol=1e-4)
    adapter.detach(model)
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


@on_every_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_flash_kernel_computes_every_layer_where_there_is_one(
    bases, dtype, device, monkeypatch
):
    calls = []

    def counted(*args):
        calls.append(args[0].dtype)
        return kernel(*args)

    kernel = attention.varlen_attention
    monkeypatch.setattr(attention, "varlen_attention", counted)
    ours(bases["llama"], ADAPTERS["LoRA"], device, dtype)
    taken = dtype == "bfloat16" and has_varlen(torch.device(device))
    assert set(calls) == ({torch.bfloat16} if taken else set())
    assert len(calls) >= 2 * taken  # layers


CASES = {
    "plain": {},
    "scaling": {"scaling": 0.3},
    "window": {"sliding_window": 33},
    "soft cap": {"softcap": 1.5},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "prefix": {"prefix_len": 7},
}


@on_every_device
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_is_that_of_float64(case, size, dtype, device):
    lens = [7, 1, 300, 160]
    torch.manual_seed(0)
    heads = [torch.randn(1, h, sum(lens), size) for h in (4, 2, 2)]
    heads = [x.to(getattr(torch, dtype)).double() for x in heads]
    weight = torch.randn(1, sum(lens), 4, size, dtype=torch.float64)
    found = []
    for where, kind in (("cpu", torch.float64), (device, getattr(torch, dtype))):
        inputs = [x.to(where, kind).requires_grad_() for x in heads]
        ends = torch.tensor([0, *lens]).cumsum(0).int().to(where)
        options = {k: v.to(where, kind) if k == "s_aux" else v for k, v in CASES[case].items()}
        batch = {"seq_lens": lens, "cu_seq_lens_q": ends, "max_length_q": max(lens)}
        out, _ = attention.attention_per_sequence(None, *inputs, None, **batch, **options)
        grads = torch.autograd.grad((out.double() * weight.to(where)).sum(), inputs)
        found.append(dict(zip(["out", "q", "k", "v"], [out.detach(), *grads], strict=True)))
    # scores, weights and outputs are rounded, and so is each gradient on the way back; sums over
    # 128 numbers and 300 keys in float32 add the square root of so many roundings
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert relative_error(found[1], found[0]) < 8 * eps + 64 * torch.finfo(torch.float32).eps
