"""A mixture of experts' load-balancing loss: in training as transformers' own loss has it."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from kinds_of_forward import EXPERTS, SIZES, model_of
from peft_lightning import LoRA
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.kernels.own_forward import use_flat_attention
from peft_lightning.kernels.patch import patch_model
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from rounding import assert_near
from test_forward_check import rows_of
from tiny_run import byte_tokenizer, fit

ROWS = rows_of(40, 7, 29)
LAYOUTS = {"flat": flat_collate, "padded": lambda rows: padded_collate(rows, 0)}
ASKS = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
TARGETS = ["q_proj", "v_proj"]


def mixtral(**options):
    """Return Mixtral in float32: its experts' products have no float64."""
    return model_of("mixtral", **SIZES, **EXPERTS, **{**ASKS, **options}).float()


def with_lora(model, **options):
    use_flat_attention(model)
    patch_model(model.requires_grad_(False), **options)
    adapter = LoRA(r=2, target_modules=TARGETS)
    adapter.attach(model)
    generator = torch.Generator().manual_seed(0)
    for tensor in adapter.state_dict(model).values():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_are_those_of_transformers_own_loss(layout, checkpointing):
    theirs, ours = mixtral(), mixtral()
    reference = with_lora(theirs)
    theirs.set_attn_implementation("sdpa")
    expected = theirs(**padded_collate(ROWS, 0), use_cache=False).loss
    expected.backward()
    adapter = with_lora(ours, activation_checkpointing=checkpointing)
    nll, tokens, _ = CausalLMLoss(ours, adapter).nll(LAYOUTS[layout](ROWS))
    (nll / tokens).backward()
    assert_near(nll / tokens, expected)
    for name, tensor in adapter.tensors(ours).items():
        gradient = reference.tensors(theirs)[name].grad
        assert (tensor.grad - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_no_part_of_an_evaluation_and_can_be_left_out(layout):
    model = mixtral()
    with torch.no_grad():
        logits = model(**padded_collate(ROWS, 0), use_cache=False).logits[:, :-1]
    labels = padded_collate(ROWS, 0)["labels"][:, 1:]
    plain = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="sum")
    adapter = LoRA(r=2, target_modules=TARGETS)
    use_flat_attention(model)
    adapter.attach(model.requires_grad_(False))
    batch = LAYOUTS[layout](ROWS)
    with torch.no_grad():
        assert_near(CausalLMLoss(model, adapter).nll(batch)[0], plain)
    without = CausalLMLoss(model, adapter, router_aux_loss=0.0)
    assert_near(without.nll(batch)[0].detach(), plain)


def test_a_factor_of_ones_own_stands_for_the_models():
    model = mixtral(output_router_logits=False)
    batch = flat_collate(ROWS)
    adapter = LoRA(r=2, target_modules=TARGETS)
    adapter.attach(model.requires_grad_(False))
    by_factor = [
        CausalLMLoss(model, adapter, router_aux_loss=factor).nll(batch)
        for factor in (0.0, 1.0, 3.0)
    ]
    none, once, thrice = (float(nll.detach() / tokens) for nll, tokens, _ in by_factor)
    assert thrice - none == pytest.approx(3 * (once - none), rel=1e-4)
    assert once - none > 1  # at least 1 for two of four experts, Fedus et al. 2021, section 2.2


def test_a_model_without_such_a_loss_is_named():
    with pytest.raises(UserError, match=r"router_aux_loss is 0.1, but LlamaForCausalLM has no"):
        CausalLMLoss(model_of("llama"), router_aux_loss=0.1)


def test_another_term_of_a_models_own_loss_is_said(caplog, monkeypatch):
    model = model_of("llama")
    own = type(model).loss_function.fget(model)
    monkeypatch.setattr(
        type(model), "loss_function", property(lambda self: lambda *a, **k: own(*a, **k) + 0.7)
    )
    with caplog.at_level("INFO"), torch.no_grad():
        CausalLMLoss(model).nll(flat_collate(ROWS))
    assert "LlamaForCausalLM's own loss of a row is" in caplog.text
    assert "without the model's own further terms" in caplog.text


def test_a_run_says_what_its_loss_has_and_refuses_a_cache_without_routers(rows, tmp_path, caplog):
    tokenizer = byte_tokenizer()
    mixtral(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "moe").config.output_router_logits
    options = {"adapter": LoRA(r=2, target_modules=TARGETS, layers_to_transform=[1])}
    with caplog.at_level("INFO"):
        trainer = fit(tmp_path / "moe", rows, tmp_path / "run", max_steps=2, **options)
    assert trainer.callback_metrics["train/loss"] > 5.5  # log(260) and 0.5
    assert "load-balancing loss of the experts' routers times 0.5" in caplog.text
    cached = {"module": {"cache_hidden_states": True}}
    with pytest.raises(UserError, match="leaves out the routers of the frozen layers"):
        fit(tmp_path / "moe", rows, tmp_path / "cached", max_steps=2, **options, **cached)
