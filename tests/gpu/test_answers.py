"""Answers, compiled layers and quantised bases on every device."""

import shutil

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from devices import DEVICES, draw_adapter, on_every_device, relative_error
from peft_lightning import CausalLMModule, LoRA, PromptTuning, load_base_model
from peft_lightning.base_model.quantization import dequantized
from peft_lightning.kernels.attention import FLAT_ATTENTION, flat_inputs
from peft_lightning.kernels.compiled_layers import compile_layers
from tiny import tiny_model
from tiny_run import byte_tokenizer, flat_batch

ROWS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45, 46], [8, 3], [90, 17, 60, 61, 11]]
NEW = 6
HALF_AND_SINGLE = [torch.bfloat16, torch.float32]


@on_every_device
@pytest.mark.parametrize(
    "adapter", [LoRA(r=2), PromptTuning(num_virtual_tokens=3)], ids=["LoRA", "prompt tuning"]
)
def test_greedy_answers_in_a_batch_are_those_of_transformers_to_each_row(base, adapter, device):
    module = CausalLMModule(str(base), adapter, dtype="float32")
    module.configure_model()
    draw_adapter(module.adapter, module.model)
    module.to(device)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64).requires_grad_(False)
    adapter.attach(plain)
    draw_adapter(adapter, plain)
    plain.eval().to(device)
    end = module.tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=end, pad_token_id=0)
    wanted = []
    for row in ROWS:
        ids = torch.tensor([row], device=device)
        inputs = adapter.prepare_inputs(
            plain, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        )
        inputs.pop("position_ids", None)  # transformers counts them itself
        answer = plain.generate(**inputs, generation_config=config)[0].tolist()
        new = answer[len(row) :] if "input_ids" in inputs else answer
        wanted.append([i for i in new if i != end])
    texts = [module.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in wanted]
    assert module.generate(ROWS, NEW) == texts
    assert len(set(texts)) > 1


def backend(device):
    """Return a backend of torch.compile that is quick on a CPU, and the usual one on a GPU."""
    if device == "cuda" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    return "inductor" if device == "cuda" else "eager"


def compiled_gradients(dtype, device, compiled):
    """Return the gradients of two batches of other lengths."""
    model = tiny_model("llama", dtype, attn_implementation=FLAT_ATTENTION)
    adapter = LoRA(r=2)
    adapter.attach(model)
    draw_adapter(adapter, model)
    model.to(device)
    if compiled:  # fullgraph: a graph break is an error
        compile_layers(model, backend(device))
    found = {}
    for lens in ([5, 13, 2], [20, 7]):
        batch = flat_batch(lens)
        batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        model.zero_grad()
        inputs = {k: batch[k] for k in ("input_ids", "position_ids")} | flat_inputs(batch)
        logits = model(**inputs, use_cache=False).logits
        logits.to(torch.promote_types(dtype, torch.float32)).square().mean().backward()
        named = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found |= {f"{n} {lens}": grad.clone() for n, grad in named.items()}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "device"),
    [
        (torch.float32, "cpu"),
        *(pytest.param(d, *DEVICES[1].values, marks=DEVICES[1].marks) for d in HALF_AND_SINGLE),
    ],
)
def test_compiled_layers_are_as_near_to_float64_as_plain_ones(dtype, device):
    torch._dynamo.reset()
    exact = compiled_gradients(torch.float64, "cpu", False)
    errors = [
        relative_error(compiled_gradients(dtype, device, compiled), exact)
        for compiled in (True, False)
    ]
    assert errors[0] <= 2 * errors[1] + 4 * torch.finfo(dtype).eps


@on_every_device
@pytest.mark.bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_over_quantised_weights_are_those_over_the_numbers_they_stand_for(
    bits, device, tmp_path
):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    tokenizer = byte_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids, found = torch.arange(4, 44, device=device)[None], []
    for plain in (False, True):
        model = load_base_model(str(tmp_path), dtype="float32", quantization=bits, device=device)
        model = dequantized(model) if plain else model
        adapter = LoRA(r=4, target_modules=["q_proj", "down_proj"])
        adapter.attach(model)
        draw_adapter(adapter, model)
        model(ids, labels=ids).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    # 4 bits are multiplied as the numbers they stand for; LLM.int8() rounds the inputs to 1/127
    assert relative_error(*found) < {"4bit": 1e-3, "8bit": 0.1}[bits]


@on_every_device
def test_sampled_answers_leave_the_random_state_of_the_device_alone(base, device):
    from peft_lightning.inference.generate import generate_tokens

    model = load_base_model(str(base), dtype="float32").to(device)
    torch.manual_seed(3)
    wanted = torch.rand(4, device=device)
    torch.manual_seed(3)
    answers = generate_tokens(
        model, None, byte_tokenizer(), ROWS, NEW, temperature=1.0, seed=5, end_ids=[]
    )
    assert_close(torch.rand(4, device=device), wanted, rtol=0, atol=0)
    again = generate_tokens(
        model, None, byte_tokenizer(), ROWS, NEW, temperature=1.0, seed=5, end_ids=[]
    )
    assert answers == again
