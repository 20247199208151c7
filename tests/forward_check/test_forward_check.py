"""The loss of a model is its own forward's, whatever way is fast: compared with it in float64."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from kinds_of_forward import CONFIGS, model_of
from peft_lightning import CausalLMModule, LoRA
from peft_lightning.data.collate import flat_collate, padded_collate
from peft_lightning.forward_check import memory
from peft_lightning.kernels.own_forward import own_forward, use_flat_attention
from peft_lightning.kernels.patch import patch_model
from peft_lightning.loss import CausalLMLoss
from peft_lightning.messages import UserError
from tiny import tiny_model
from tiny_run import byte_tokenizer, fit, flat_batch


def rows_of(*lens, seed=0):
    generator = np.random.default_rng(seed)
    rows = [generator.integers(3, 90, n) for n in lens]
    labels = [np.where(np.arange(len(ids)) < 3, -100, ids) for ids in rows]
    return [{"input_ids": i, "labels": of_row} for i, of_row in zip(rows, labels, strict=True)]


ROWS = rows_of(40, 7, 29)  # longer and shorter than each window and chunk, which are 8
BATCHES = {
    "flat": (flat_collate, ROWS),
    "padded": (lambda rows: padded_collate(rows, 0), ROWS),
    "one padded row": (lambda rows: padded_collate(rows, 0), ROWS[:1]),
    "padded rows of one length": (lambda rows: padded_collate(rows, 0), rows_of(21, 21, seed=1)),
}


def definition(model, rows):
    """Return the summed loss of rows that the model is given alone, as transformers made it."""
    total = 0.0
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits.double(), labels[1:], reduction="sum").item()
    return total


def prepared(model):
    """Return the loss of a model as a run makes it ready."""
    use_flat_attention(model)
    patch_model(model)
    return CausalLMLoss(model)


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request):
    """A kind of model, what its own forward gives for each batch, and its loss in a run."""
    model = model_of(request.param)
    with torch.no_grad():
        own = {name: definition(model, rows) for name, (_, rows) in BATCHES.items()}
    return request.param, own, prepared(model)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_loss_is_that_of_the_models_own_forward_for_each_row_alone(kind, batch):
    name, own, loss = kind
    collate, rows = BATCHES[batch]
    with torch.no_grad():
        nll, tokens, _ = loss.nll(collate(rows))
    assert tokens == sum(len(row["input_ids"]) - 3 for row in rows)
    # parts of some models compute in float32: norms, routers, positions
    assert nll.item() == pytest.approx(own[batch], rel=1e-5)
    way = CONFIGS[name][1]
    if batch == "flat" and way is not None:
        assert str(own_forward(loss.model).checked["flat", "NoneType"].way) == way


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "mistral", "bigbird_pegasus", "rwkv", "llama4_text"])
def test_half_precision_hides_no_fault_and_makes_none(name, dtype):
    loss = prepared(model_of(name).to(dtype))
    with torch.no_grad():
        loss.nll(flat_collate(ROWS))
    assert str(own_forward(loss.model).checked["flat", "NoneType"].way) == CONFIGS[name][1]


def test_the_way_is_said_in_one_line_with_the_reason(caplog):
    loss = prepared(model_of("bloom"))
    with caplog.at_level(logging.INFO), torch.no_grad():
        for _ in range(2):
            loss.nll(flat_collate(ROWS))
        loss.nll(padded_collate(ROWS, 0))
    assert len(caplog.messages) == 1
    assert "BloomForCausalLM is given padded rows (eager)" in caplog.text
    assert "rows end to end: outputs of rows are" in caplog.text


class Windowed:
    """A fault beyond a length that the config names, in our attention alone."""

    def __init__(self, length):
        self.model = tiny_model("llama", torch.float64)
        self.model.config.sliding_window = length  # which Llama's own forward does not read
        self.loss = prepared(self.model)
        forward = self.model.model.layers[0].self_attn.forward

        def shifted(hidden_states, **kwargs):
            out, weights = forward(hidden_states, **kwargs)
            wide = max(kwargs.get("seq_lens") or [0]) > length
            return (out + 0.1 if wide else out), weights

        self.model.model.layers[0].self_attn.forward = shifted


def test_a_row_beyond_a_window_is_looked_at_when_it_comes(caplog):
    case = Windowed(30)
    with torch.no_grad(), caplog.at_level(logging.INFO):
        assert case.loss.takes_flat(flat_batch([30, 9]))
        assert not caplog.messages
        assert not case.loss.takes_flat(flat_batch([31, 9]))
    assert "outputs of rows of 31 tokens are" in caplog.text


def test_a_layer_that_we_compute_otherwise_runs_its_own_code(caplog):
    model = tiny_model("llama", torch.float64)
    expected = definition(model, ROWS)
    loss, layer = prepared(model), model.model.norm
    own, ours = own_forward(model).forwards[layer]
    wrong = lambda x: 1.1 * ours(x)  # noqa: E731
    layer.forward, own_forward(model).forwards[layer] = wrong, (own, wrong)
    with torch.no_grad(), caplog.at_level(logging.INFO):
        assert loss.nll(flat_collate(ROWS))[0].item() == pytest.approx(expected, rel=1e-6)
    assert "its own attention and layers" in caplog.text


@pytest.mark.parametrize("collate", [flat_collate, lambda rows: padded_collate(rows, 0)])
def test_a_model_whose_own_forward_sees_the_answer_is_refused(collate):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = model_of("bert", **sizes, num_attention_heads=4, is_decoder=False)
    with pytest.raises(UserError, match=r"BertLMHeadModel cannot .* sees those after it.*is_deco"):
        prepared(model).nll(collate(ROWS))


def test_the_model_computes_as_before_when_the_check_is_over():
    model = tiny_model("llama")
    loss = prepared(model)
    layers = {name: part.__dict__.get("forward") for name, part in model.named_modules()}
    model.train()
    state = torch.get_rng_state()
    assert loss.takes_flat(flat_batch([9, 5]))
    assert layers == {name: part.__dict__.get("forward") for name, part in model.named_modules()}
    assert model.config._attn_implementation == "peft_lightning"
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def forwards(monkeypatch, tmp_path):
    """The numbers of tokens that the decoder of Llama was given, with a cache of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    widths = []

    def of(base, change=lambda model: None, **options):
        module = CausalLMModule(str(base), LoRA(r=2), **options)
        module.configure_model()
        change(module.model)
        module.model.get_decoder().register_forward_hook(
            lambda layer, args, out: widths.append(out.last_hidden_state.shape[:2].numel())
        )
        widths.clear()
        module.nll(flat_batch([9, 5]))
        return len(widths)

    return of


def test_what_was_found_costs_nothing_in_later_runs(base, forwards):
    first, second = forwards(base), forwards(base)
    assert second < first <= second + 8
    assert forwards(base, attn_implementation="eager") > second  # which is looked at anew


class OtherVersion:
    """A package but for its version."""

    __version__ = "99.1"

    def __init__(self, package):
        self._package = package

    def __getattr__(self, name):
        return getattr(self._package, name)


@pytest.mark.parametrize("program", ["torch", "transformers", "peft_lightning"])
def test_what_another_version_found_is_looked_at_anew(program, base, forwards, monkeypatch):
    first, second = forwards(base), forwards(base)
    monkeypatch.setattr(memory, program, OtherVersion(getattr(memory, program)))
    assert second < forwards(base) == first


def test_another_config_over_the_same_weights_is_looked_at_anew(base, forwards, tmp_path):
    first = forwards(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.rms_norm_eps = 1e-4
    model.save_pretrained(tmp_path / "other")
    for file in base.glob("*token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    assert forwards(tmp_path / "other") == first


def test_a_model_that_somebody_has_changed_is_looked_at_anew(base, forwards):
    class Other(torch.nn.SiLU):
        pass

    def hooked(model):
        model.model.layers[0].register_forward_hook(lambda *args: None)

    def replaced(model):
        model.model.layers[1].mlp.act_fn = Other()

    first, second = forwards(base), forwards(base)
    assert second < forwards(base, hooked) <= first
    assert second < forwards(base, replaced) <= first


def test_a_damaged_memory_is_looked_at_anew(base, forwards, tmp_path):
    first = forwards(base)
    (file,) = (tmp_path / "cache" / "peft_lightning" / "forward_checks").iterdir()
    file.write_text("{}")
    assert forwards(base) == first


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_a_run_trains_a_model_whose_attention_was_chosen_when_it_was_built(
    layout, rows, tmp_path, caplog
):
    tokenizer = byte_tokenizer()
    model_of("falcon", vocab_size=len(tokenizer)).float().save_pretrained(tmp_path / "falcon")
    tokenizer.save_pretrained(tmp_path / "falcon")
    options = {"max_steps": 2, "max_epochs": -1, "data": {"layout": layout}}
    with caplog.at_level(logging.INFO):
        trainer = fit(tmp_path / "falcon", rows, tmp_path / "run", **options)
    assert trainer.global_step == 2
    assert caplog.text.count("FalconForCausalLM is given padded rows") == (layout == "flat")
