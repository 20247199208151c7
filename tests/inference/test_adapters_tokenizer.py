"""The tokenizer in an adapter's folder is the adapter's: in every command, and elsewhere."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import peft_lightning.inference.generate as generation
from peft_lightning import CausalLMModule, LoRA, UserError
from peft_lightning.base_model.resolve import tokenizer_files_in
from peft_lightning.base_model.tokenizer import adapter_tokenizer
from peft_lightning.commands.combine import combine
from peft_lightning.commands.generate import generate
from peft_lightning.commands.merge import merge
from peft_lightning.commands.resize import resize
from peft_lightning.inference import load
from peft_lightning.inference.load import load_inference_model
from tiny_run import byte_tokenizer, fit, write_base, write_rows

TURNS = (  # in tokens that the base does not have
    "{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|bot|>') + m.content }}"
    "{% if m.role != 'user' %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|bot|>{% endif %}"
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base without a chat template."""
    folder = write_base(tmp_path_factory.mktemp("plain") / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module")
def foreign(plain, tmp_path_factory):
    """An adapter as TRL and axolotl write it: with added tokens, a template and the embeddings."""
    folder = tmp_path_factory.mktemp("foreign") / "adapter"
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|bot|>"]})
    tokenizer.chat_template = TURNS
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
        elif parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked_of_hf(folder, text):
    messages = [{"role": "user", "content": text}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return tokenizer, list(ids)


@pytest.fixture
def asked(monkeypatch):
    """The token ids that prompts became."""
    rows = []
    answer = generation.generate_tokens

    def spy(model, adapter, tokenizer, prompts, *args, **kwargs):
        rows.extend([int(i) for i in ids] for ids in prompts)
        return answer(model, adapter, tokenizer, prompts, *args, **kwargs)

    monkeypatch.setattr(load, "generate_tokens", spy)
    monkeypatch.setattr(generation, "generate_tokens", spy)
    return rows


def test_generate_and_a_module_ask_by_the_tokenizer_of_the_folder(foreign, asked):
    _, want = asked_of_hf(foreign, "why?")
    assert max(want) > 259
    generate("why?", ckpt_path=str(foreign), max_new_tokens=2)
    CausalLMModule.load_from_checkpoint(foreign).generate(["why?"], 2)
    assert asked == [want, want]


def test_a_given_tokenizer_wins(foreign, plain, asked):
    generate("why?", ckpt_path=str(foreign), tokenizer=str(plain), max_new_tokens=2)
    assert asked == [byte_tokenizer()("why?")["input_ids"]]


def test_each_of_several_adapters_is_asked_by_its_own(foreign, plain, asked, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(foreign, bare)
    for name in tokenizer_files_in(bare):
        (bare / name).unlink()
    generate("why?", adapter=[f"a={foreign}", f"b={bare}"], max_new_tokens=2)
    assert asked == [asked_of_hf(foreign, "why?")[1], byte_tokenizer()("why?")["input_ids"]]


def test_the_merged_model_has_it(foreign, plain, tmp_path, asked):
    merge(str(foreign), str(tmp_path / "merged"), verify=False)
    tokenizer, want = asked_of_hf(tmp_path / "merged", "why?")
    assert tokenizer.get_vocab() == asked_of_hf(foreign, "why?")[0].get_vocab()
    assert tokenizer.chat_template == TURNS
    generate("why?", base_model=str(tmp_path / "merged"), max_new_tokens=2)
    assert asked == [want] == [asked_of_hf(foreign, "why?")[1]]


def test_training_goes_on_with_it_and_its_checkpoints_have_it(foreign, plain, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    module = {"init_from": str(foreign), "sample_prompts": ["why?"], "sample_max_new_tokens": 2}
    options = {"adapter": LoRA(), "module": module, "data": {"val_fraction": 0}, "max_steps": 1}
    trainer = fit(plain, rows, tmp_path / "run", **options)
    ids = trainer.datamodule.splits["train"].parts[0][0]["input_ids"].tolist()
    assert ids[0] == 260  # <|user|>
    folder = tmp_path / "run/checkpoints/last.ckpt"
    assert asked_of_hf(folder, "why?")[1] == asked_of_hf(foreign, "why?")[1]


def test_a_tokenizer_that_the_model_has_no_embedding_for_is_refused(plain, lora_folder, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(lora_folder, folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(folder)
    for act in (
        lambda: load_inference_model(None, {"a": str(folder)}),
        lambda: merge(str(folder), str(tmp_path / "merged"), verify=False),
    ):
        with pytest.raises(UserError, match=r"'<\|user\|>' \(id 260\).*260 rows.*as tokenizer"):
            act()


def test_the_tokenizer_file_decides_and_not_what_a_class_makes_of_it(tmp_path, capsys):
    tokenizer = byte_tokenizer()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    digits = {"type": "Digits", "individual_digits": True}
    backend["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [digits, backend["pre_tokenizer"]],
    }
    vocabulary = backend["model"]["vocab"]
    vocabulary["12"] = len(vocabulary)
    backend["model"]["merges"] = [["1", "2"]]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"})
    )
    found = adapter_tokenizer("no base is asked for", tmp_path)
    assert found.tokenize("a12") == ["a", "1", "2"]
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize("a12") == ["a", "12"]
    assert "GPT2Tokenizer of this transformers would cut texts in another way" in (
        capsys.readouterr().err
    )


def test_adapters_made_of_one_have_it(lora_folder, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(lora_folder, folder)
    byte_tokenizer().save_pretrained(folder)
    resize(str(folder), str(tmp_path / "small"), rank=1)
    combine(str(tmp_path / "both"), str(folder), str(tmp_path / "small"))
    for made in ("small", "both"):
        assert tokenizer_files_in(tmp_path / made) == tokenizer_files_in(folder)
