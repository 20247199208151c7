"""Every architecture: flat batches, the loss, both methods, every precision."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MambaConfig, MixtralConfig

from peft_lightning import CausalLMModule, LoRA, PromptTuning
from peft_lightning.data.collate import flat_collate
from rounding import assert_near, rounding_error
from tiny import ARCHITECTURES
from tiny_run import byte_tokenizer, fit

pytestmark = pytest.mark.processor
LENS = [5, 13, 1, 20]  # above Mistral's and Gemma's window of 8, too


def sequences():
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 100, (n,), generator=generator) for n in LENS]
    return [(ids, torch.where(torch.arange(len(ids)) < len(ids) // 3, -100, ids)) for ids in rows]


def flat_batch():
    return flat_collate(
        [{"input_ids": ids.numpy(), "labels": labels.numpy()} for ids, labels in sequences()]
    )


def loaded(folder, adapter=None):
    module = CausalLMModule(str(folder), adapter or LoRA(r=2))
    module.configure_model()
    return module


def reference(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def nll_alone(model):
    """Return the summed loss of transformers' own forward, row by row, and its gradient."""
    total, tokens = torch.zeros(()), 0
    for ids, labels in sequences():
        logits = model(ids[None]).logits[0, :-1].float()
        total = total + F.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100)
        tokens += int((labels[1:] != -100).sum())
    return total, tokens


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_flat_batch_has_the_loss_of_its_sequences_alone(bases, architecture):
    module = loaded(bases[architecture])
    with torch.no_grad():
        nll, tokens = module.nll(flat_batch())
        expected, count = nll_alone(reference(bases[architecture]))
    assert tokens == count
    assert_near(nll, expected)


def error_of(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradients_are_as_near_to_float64s_as_transformers_own(bases, architecture):
    torch.manual_seed(0)
    module = loaded(bases[architecture], LoRA(r=2, init_lora_weights=False))
    module.nll(flat_batch())[0].backward()
    theirs = []
    for dtype in (torch.float32, torch.float64):
        model, adapter = reference(bases[architecture]), LoRA(r=2, init_lora_weights=False)
        adapter.attach(model)
        adapter.load_state_dict(model, module.adapter.state_dict(module.model))
        nll_alone(model.to(dtype))[0].backward()
        theirs.append([p.grad for p in adapter.tensors(model).values()])
    ours = module.adapter.tensors(module.model).items()
    for (name, parameter), single, exact in zip(ours, *theirs, strict=True):
        error = error_of(parameter.grad, exact)
        assert error < max(rounding_error(torch.float32), 1.5 * error_of(single, exact)), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_are_never_held_by_a_model_with_a_plain_head(bases, architecture):
    module = loaded(bases[architecture])
    module.outputs._plain_head = module.outputs.takes_flat(flat_batch())  # checked now
    module.model.forward = None  # what would make them
    assert module.nll(flat_batch())[0] > 0
    assert loaded(bases[architecture]).outputs._has_plain_head()


def test_a_head_that_does_more_than_its_weight_says_computes_its_own_logits(bases):
    module = loaded(bases["llama"])
    module.model.lm_head.register_forward_hook(lambda head, given, logits: logits * 1.002)
    with torch.no_grad():
        nll, tokens = module.nll(flat_batch())
        logits, targets = module.labelled_logits(flat_batch())
        plain = loaded(bases["llama"]).nll(flat_batch())[0]
    assert_near(nll, F.cross_entropy(logits, targets, reduction="sum"))
    assert len(targets) == tokens
    assert nll != plain


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_start_equals_the_base(bases, architecture):
    module = loaded(bases[architecture], LoRA(r=4))
    ids = sequences()[3][0][None]
    with torch.no_grad():
        logits = reference(bases[architecture])(ids).logits
        assert_near(module.model(input_ids=ids).logits, logits)


@pytest.mark.parametrize(
    "adapter", [LoRA(r=2), PromptTuning(num_virtual_tokens=3)], ids=lambda a: type(a).__name__
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_moves_the_adapter_and_nothing_else(bases, rows, tmp_path, architecture, adapter):
    if architecture == "mistral" and isinstance(adapter, PromptTuning):
        pytest.skip("its window of 8 keeps the answers from seeing the virtual tokens")
    trainer = fit(
        bases[architecture], rows, tmp_path / "run", adapter=adapter, max_steps=2, max_epochs=-1
    )
    before = loaded(bases[architecture], adapter)
    after = trainer.lightning_module
    trained = {id(t) for t in after.adapter.tensors(after.model).values()}
    pairs = zip(before.model.parameters(), after.model.parameters(), strict=True)
    for old, new in pairs:
        assert torch.equal(old, new) or id(new) in trained
    assert trainer.global_step == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_every_precision_trains(base, rows, tmp_path, precision):
    trainer = fit(base, rows, tmp_path / "run", max_steps=3, max_epochs=-1, precision=precision)
    assert trainer.global_step == 3
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_mixture_of_experts_trains(rows, tmp_path):
    tokenizer = byte_tokenizer()
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    trainer = fit(tmp_path / "moe", rows, tmp_path / "run", max_steps=2, max_epochs=-1)
    assert trainer.global_step == 2


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("mamba"), byte_tokenizer()
    config = MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, state_size=4, num_hidden_layers=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_that_mixes_sequences_trains_on_padded_rows_and_says_so(
    mamba, rows, tmp_path, caplog
):
    with caplog.at_level("INFO"):
        fit(mamba, rows, tmp_path / "run", max_steps=1)
    assert caplog.text.count("MambaForCausalLM is given padded rows") == 1
    assert "rows end to end: " in caplog.text


def test_it_trains_on_padded_batches(mamba, rows, tmp_path):
    options = {"data": {"layout": "padded"}, "max_steps": 2, "max_epochs": -1}
    assert fit(mamba, rows, tmp_path / "run", **options).global_step == 2
