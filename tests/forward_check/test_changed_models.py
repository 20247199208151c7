"""What a user changes of a model's class is compared like any model, in each entry of a trainer."""

import json
import logging

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from peft_lightning.inference.generate import generate_tokens
from peft_lightning.kernels.own_forward import own_forward
from tiny import tiny_model
from tiny_run import byte_tokenizer, flat_batch

CODE = '''"""A Llama each token of which also reads the one before it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnMLP(LlamaMLP):
    def forward(self, x):
        rows, tokens, size = x.shape
        before = torch.cat([x.new_zeros(rows, 1, size), x[:, :-1]], 1)
        return super().forward(x + FACTOR * before)


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = OwnMLP(config)
'''
FLAT_IS_WRONG = "is given padded rows: only so does it compute what its own forward does"


class ShiftedMLP(LlamaMLP):
    """Reads the token before, also where that is another row's."""

    def forward(self, x):
        return super().forward(x + F.pad(x, (0, 0, 1, 0))[:, :-1])


class SubclassForCausalLM(LlamaForCausalLM):
    """Llama with such layers."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = ShiftedMLP(config)


def write_code(folder, factor=1.0):
    (folder / "own.py").write_text(CODE.replace("FACTOR", str(factor)))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """The folder of a model that brings its class."""
    modules = str(tmp_path / "modules")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, tokenizer = tmp_path / "remote", byte_tokenizer()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_code(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "own", "auto_map": names, "architectures": ["OwnForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def given(kind, base, remote):
    """Return what a module takes as its base, and the model as transformers loads it."""
    if kind == "remote":
        own = AutoModelForCausalLM.from_pretrained(remote, trust_remote_code=True)
        return (str(remote), {"trust_remote_code": True}), own.eval()
    own, ours = (SubclassForCausalLM.from_pretrained(base).eval() for _ in range(2))
    return (ours, {}), own


def module_of(base_and_options):
    base, options = base_and_options
    return CausalLMModule(base, LoRA(r=2), **options)


@torch.no_grad()
def own_loss(model, batch):
    """Return the summed loss of a flat batch in the model's own forward of each row, and tokens."""
    total, tokens = 0.0, 0
    rows, labels = (
        batch[name][0].split(list(batch["seq_lens"])) for name in ("input_ids", "labels")
    )
    for ids, of_row in zip(rows, labels, strict=True):
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits, of_row[1:], reduction="sum").item()
        tokens += int((of_row[1:] != -100).sum())
    return total, tokens


@pytest.mark.parametrize("kind", ["remote", "subclass"])
def test_a_class_of_the_user_is_given_rows_as_its_own_forward_takes_them(
    kind, base, remote, caplog
):
    ours, own = given(kind, base, remote)
    module, batch = module_of(ours), flat_batch([9, 5, 14])
    module.configure_model()
    with caplog.at_level(logging.INFO), torch.no_grad():
        nll, _ = module.nll(batch)
    assert nll.item() == pytest.approx(own_loss(own, batch)[0], rel=1e-5)
    assert f"{type(own).__name__} {FLAT_IS_WRONG}" in caplog.text


def test_other_code_under_the_same_name_is_looked_at_anew(remote):
    for factor, way in ((1.0, "padded rows"), (0.0, "rows end to end"), (1.0, "padded rows")):
        write_code(remote, factor)
        module = module_of((str(remote), {"trust_remote_code": True}))
        module.configure_model()
        with torch.no_grad():
            module.nll(flat_batch([9, 5]))
        assert str(own_forward(module.model).checked["flat", "LoRA"].way) == way


@pytest.fixture(params=["remote", "subclass"])
def user_model(request, base, remote, rows, tmp_path):
    """A base as a module takes it, the model as transformers loads it, a trainer and data."""
    data = SFTDataModule(
        val=str(rows), predict=str(rows), batch_size=4, cache_dir=str(tmp_path / "tokens")
    )
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = L.Trainer(default_root_dir=tmp_path, **options)
    return *given(request.param, base, remote), trainer, data


def test_validate_compares_it_too(user_model, caplog):
    ours, own, trainer, data = user_model
    with caplog.at_level(logging.INFO):
        (found,) = trainer.validate(module_of(ours), data, verbose=False)
    assert caplog.text.count(FLAT_IS_WRONG) == 1
    nll, tokens = 0.0, 0
    for batch in data.val_dataloader():
        row_nll, row_tokens = own_loss(own, batch)
        nll, tokens = nll + row_nll, tokens + row_tokens
    assert found["val/loss"] == pytest.approx(nll / tokens, rel=1e-5)


def test_predict_answers_as_its_own_generate(user_model, capsys):
    ours, own, trainer, data = user_model
    module = module_of(ours)
    module.predict_max_new_tokens = 4
    answers = [each for batch in trainer.predict(module, data) for each in batch]
    said = f"{type(own).__name__}: prompts are answered in batches of equal length"
    assert capsys.readouterr().err.count(said) == 1
    prompts = dict(data.predict_prompts)
    for answer in answers:
        ids = torch.tensor([prompts[answer["index"]]])
        (text,) = own.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        expected = module.tokenizer.decode(text[ids.shape[1] :], skip_special_tokens=True)
        assert answer["text"] == expected.strip()


@pytest.mark.parametrize("name", ["mlp", "self_attn", "input_layernorm"])
def test_a_layer_whose_forward_somebody_has_replaced_keeps_it_and_the_others_stay_fast(name, base):
    own, ours = (AutoModelForCausalLM.from_pretrained(base).eval() for _ in range(2))
    for model in (own, ours):
        layer = getattr(model.model.layers[1], name)
        layer.forward = changed(layer.forward)
    module, batch = module_of((ours, {})), flat_batch([9, 5, 14])
    module.configure_model()
    with torch.no_grad():
        nll, _ = module.nll(batch)
    assert nll.item() == pytest.approx(own_loss(own, batch)[0], rel=1e-5)
    assert str(own_forward(module.model).checked["flat", "LoRA"].way) == "rows end to end"
    assert len(own_forward(module.model).forwards) == 5 + 2 + 2 - 1  # norms, MLPs, attentions


def changed(forward):
    """Return a forward whose first output is turned round."""

    def other(*args, **kwargs):
        output = forward(*args, **kwargs)
        return (-output[0], *output[1:]) if isinstance(output, tuple) else -output

    return other


def test_answers_do_not_go_through_a_layer_that_we_compute_otherwise(base):
    module, own = module_of((str(base), {})), AutoModelForCausalLM.from_pretrained(base).eval()
    module.configure_model()
    layer, forward = module.model.model.norm, own_forward(module.model)
    before, ours = forward.forwards[layer]
    wrong = lambda x: -ours(x)  # noqa: E731
    layer.forward, forward.forwards[layer] = wrong, (before, wrong)
    prompts = [[5, 9, 30], [40, 41, 42, 43]]
    tokens = generate_tokens(module.model, module.adapter, module.tokenizer, prompts, 4, end_ids=())
    for ids, answer in zip(prompts, tokens, strict=True):
        text = own.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert text[0, len(ids) :].tolist() == answer
