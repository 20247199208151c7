"""torch.compile as an option: no graph break, the same gradients, names and checkpoints."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, LlamaConfig

from exactness import sgd
from peft_lightning import CausalLMModule, Constant, LoRA, PromptTuning
from peft_lightning.kernels.attention import FLAT_ATTENTION, flat_inputs
from peft_lightning.kernels.compiled_layers import compile_layers
from peft_lightning.training.checkpoint import AdapterCheckpoint
from rounding import BACKWARD, assert_near
from tiny import DIM, tiny_model
from tiny_run import fit, flat_batch

pytestmark = pytest.mark.slow


def gradients(model, batch):
    """Return the loss of a flat batch and the gradients of all that is trained."""
    inputs = {k: batch[k] for k in ("input_ids", "position_ids")} | flat_inputs(batch)
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0])
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("architecture", "backend"),
    [("llama", "aot_eager"), ("gpt2", "eager"), ("gemma3", "eager"), ("phi3", "eager")],
)
def test_compiled_layers_have_the_gradients_of_plain_ones(architecture, backend):
    plain, compiled = (
        tiny_model(architecture, torch.float64, attn_implementation=FLAT_ATTENTION)
        for _ in range(2)
    )
    for model in (plain, compiled):
        torch.manual_seed(0)
        LoRA(r=2, init_lora_weights=False).attach(model)
    compile_layers(compiled, backend)  # fullgraph: a graph break is an error
    for lens in ([5, 13, 2], [20, 7]):
        ours, wanted = (gradients(m, flat_batch(lens)) for m in (compiled, plain))
        assert_close(ours, wanted, rtol=1e-6, atol=1e-9)


def test_layers_share_code_that_takes_batches_of_any_length():
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=DIM,
        intermediate_size=48,
        num_hidden_layers=9,  # one more than the recompilations that torch allows
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=FLAT_ATTENTION).eval()
    LoRA(r=2).attach(model)
    counter = CompileCounter()
    compile_layers(model, backend=counter)
    for lens in ([5, 13, 2], [20, 7], [3, 9, 4, 11]):
        gradients(model, flat_batch(lens))
    assert counter.frame_count <= 3


def test_a_process_compiles_any_number_of_models():
    for rank in range(1, 5):
        model = tiny_model("llama").requires_grad_(False)
        compile_layers(model, backend="eager")
        LoRA(r=rank, use_dora=rank % 2 == 0, lora_dropout=0.1).attach(model)
        for length in (5, 9):
            model(input_ids=torch.arange(length)[None], use_cache=False).logits.sum().backward()
        with torch.no_grad():
            model(input_ids=torch.arange(7)[None], use_cache=False)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_generation_runs_the_layers_as_they_were(architecture):
    model = tiny_model(architecture)
    prompt = torch.tensor([[5, 6, 7]])
    wanted = model.generate(prompt, max_new_tokens=3)
    counter = CompileCounter()
    compile_layers(model, backend=counter)
    assert torch.equal(model.generate(prompt, max_new_tokens=3), wanted)
    assert counter.frame_count == 0


def test_a_compiled_run_trains_resumes_and_answers_as_a_plain_one(base, rows, tmp_path):
    options = {"max_steps": 3, "adapter": LoRA(r=2), "data": {"val_fraction": 0}}
    descent = {"lr_schedule": Constant(), "optimizer": sgd}  # see test_frozen.py: not AdamW
    modules = descent, {**descent, "compile": True}
    plain, compiled = (
        fit(
            *(base, rows, tmp_path / name),
            module=module,
            callbacks=[AdapterCheckpoint(every_n_steps=2)],
            **options,
        ).lightning_module
        for name, module in zip(("plain", "compiled"), modules, strict=True)
    )
    ours, wanted = compiled.state_dict(), plain.state_dict()
    assert_near(ours, wanted, products=BACKWARD, steps=3)
    names = [[name for name, _ in m.named_parameters()] for m in (compiled, plain)]
    assert names[0] == names[1]
    saved = tmp_path / "compiled" / "checkpoints"
    before = str(saved / "previous.ckpt")  # of step 2
    resumed = fit(base, rows, tmp_path / "r", module=modules[1], ckpt_path=before, **options)
    for name, tensor in resumed.lightning_module.state_dict().items():
        assert torch.equal(tensor, ours[name]), name
    module = CausalLMModule.load_from_checkpoint(saved / "last.ckpt")
    prompts = ["say 3 ab", "say"]
    assert compiled.generate(prompts, 8) == module.generate(prompts, 8)


def test_virtual_tokens_cannot_be_compiled(base):
    with pytest.raises(ValueError, match="does not go with PromptTuning"):
        CausalLMModule(
            str(base), PromptTuning(num_virtual_tokens=2), compile=True
        ).configure_model()


def test_a_machine_without_a_compiler_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and there is no no-such-com"):
        compile_layers(tiny_model("llama"))
