"""``CausalLMModule`` over a loaded model, and adapters by class and name."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from peft_lightning import CausalLMModule, Full, LoRA, PromptTuning, SFTDataModule
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.training.given_base import adapter_of
from recorded import assert_same
from tiny import tiny_model
from tiny_run import byte_tokenizer, fit


def loaded(base, **options):
    return AutoModelForCausalLM.from_pretrained(base, **options)


def train(base_model, rows, root, module=None, **options):
    import lightning as L

    L.seed_everything(0, verbose=False)
    made = CausalLMModule(base_model, LoRA(r=2), **{"learning_rate": 1e-2, **(module or {})})
    data = SFTDataModule(
        train=rows, batch_size=4, cache_dir=root.parent / "cache", **options.pop("data", {})
    )
    trainer = L.Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "max_epochs": 1},
        **{"default_root_dir": root, "use_distributed_sampler": False, **options},
    )
    trainer.fit(made, data)
    return made


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def test_a_loaded_model_is_trained_as_its_name_would_be(base, rows, tmp_path):
    named = fit(base, rows, tmp_path / "a", max_epochs=1).lightning_module
    given = train(loaded(base), rows, tmp_path / "b")
    assert_same(tensors(given), tensors(named))
    assert given.fingerprint == named.fingerprint
    assert given.loss_path() == named.loss_path()


def test_the_folder_names_where_the_loaded_model_was_from(base, rows, tmp_path):
    train(loaded(base), rows, tmp_path / "a")
    folder = tmp_path / "a" / "checkpoints" / "last.ckpt"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    restored = CausalLMModule.load_from_checkpoint(folder)  # by that name
    on_a_loaded_one = CausalLMModule.load_from_checkpoint(folder, base_model=loaded(base))
    assert_same(tensors(on_a_loaded_one), tensors(restored))


def test_a_model_whose_weights_have_changed_is_another_base(base, rows, tmp_path):
    model = loaded(base)
    before = base_fingerprint(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    module = train(model, rows, tmp_path / "a")
    assert module.fingerprint != before
    folder = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="base"):
        CausalLMModule.load_from_checkpoint(folder)


def test_a_model_that_was_never_saved_takes_the_tokenizer_of_the_data(rows, tmp_path):
    tokenizer = byte_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    module = train(model, rows, tmp_path / "a", data={"tokenizer": tokenizer})
    assert module.base_model_name == "LlamaForCausalLM"
    assert module.tokenizer is tokenizer
    assert len(module.generate(["say 1"], max_new_tokens=2)) == 1
    with pytest.raises(ValueError, match=r"without a name_or_path .*SFTDataModule\(tokenizer="):
        train(tiny_model("llama", vocab_size=len(tokenizer)), rows, tmp_path / "b")


def test_a_base_is_a_path(base):
    module = CausalLMModule(Path(base))
    assert module.base_model_name == str(base)
    module.configure_model()


def test_the_base_is_frozen_and_in_eval_mode(base):
    model = loaded(base).train()
    module = CausalLMModule(model, LoRA(r=2))
    assert not list(module.parameters())  # none before it is configured
    module.configure_model()
    assert module.model is model
    assert not model.training
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }


def test_its_dtype_stays_as_it_is(base):
    module = CausalLMModule(loaded(base, dtype=torch.bfloat16), LoRA(r=2), dtype="bfloat16")
    module.configure_model()
    assert module.model.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat16"}, "loaded LlamaForCausalLM, which is float32, so dtype bfloat16 has"),
        ({"quantization": "4bit"}, "so quantization 4bit has no effect: leave it out"),
        ({"revision": "main"}, "so revision main has no effect: leave it out"),
    ],
)
def test_an_option_that_a_loaded_model_contradicts_is_refused(base, options, said):
    with pytest.raises(ValueError, match=said):
        CausalLMModule(loaded(base), **options)


def test_an_attention_is_set(base):
    module = CausalLMModule(loaded(base), LoRA(r=2), attn_implementation="eager")
    module.configure_model()
    assert module.model.config._attn_implementation == "eager"


def test_a_model_with_an_adapter_is_refused_and_without_it_is_taken_again(base):
    model = loaded(base)
    first = CausalLMModule(model, LoRA(r=2))
    first.configure_model()
    with pytest.raises(ValueError, match=r"has an adapter already, LoRA.*adapter.detach\(model\)"):
        CausalLMModule(model, LoRA(r=2)).configure_model()
    first.adapter.detach(model)
    second = CausalLMModule(model, PromptTuning(num_virtual_tokens=2))
    second.configure_model()
    assert second.fingerprint == first.fingerprint == base_fingerprint(load_base_model(str(base)))


def test_full_fine_tuning_of_half_precision_is_refused(base):
    module = CausalLMModule(loaded(base, dtype=torch.bfloat16), Full())
    with pytest.raises(ValueError, match="is bfloat16, in which small steps round away"):
        module.configure_model()


class Merged(torch.nn.Module):
    def merge_and_unload(self):
        """Stand for HF PEFT's."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (3, "must be a hub id, a path or a loaded causal language model.*got a int"),
        (torch.nn.Linear(2, 2), "must be a model of transformers.*got a Linear"),
        (Merged(), r"is a Merged of HF PEFT: give base_model.merge_and_unload\(\)"),
    ],
)
def test_what_is_no_base_model_is_named(model, said):
    with pytest.raises(ValueError, match=said):
        CausalLMModule(model)


def test_a_model_that_predicts_no_tokens_is_refused(base):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    for model in (BertModel(config), loaded(base).model):
        with pytest.raises(ValueError, match="has no head that predicts tokens"):
            CausalLMModule(model)


@pytest.mark.parametrize("given", ["LoRA", LoRA, LoRA()])
def test_an_adapter_is_a_name_a_class_or_an_adapter(base, given):
    assert CausalLMModule(str(base), adapter=given).adapter == LoRA()


@pytest.mark.parametrize(
    ("given", "said"), [("Lora", "did you mean LoRA"), (3, "got 3"), (dict, "got <class 'dict'>")]
)
def test_what_is_no_adapter_is_named(given, said):
    with pytest.raises(ValueError, match=said):
        adapter_of(given)
