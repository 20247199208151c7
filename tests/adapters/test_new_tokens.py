"""New tokens: the vocabulary grows by them, only their rows are trained, and the base stays."""

import copy
import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from parity import IDS, hf_folder, randomise
from peft_lightning.adapters import AdapterBank, LoRA, load_adapter, read_adapter, save_adapter
from peft_lightning.base_model import base_fingerprint
from rounding import assert_near
from tiny import tiny_model
from tiny_run import byte_tokenizer, write_base

NEW = ["<call>", "</call>"]
SIZE = len(byte_tokenizer())


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    """A base whose output embedding is its own, and one that ties it."""
    return write_base(tmp_path_factory.mktemp("base") / request.param, request.param)


def extended(folder, **fields):
    """Return a base with a random adapter that brings new tokens, and their tokenizer."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), base(folder)
    adapter = LoRA(r=2, target_modules=["q_proj"], new_tokens=NEW, **fields)
    adapter = adapter.with_tokenizer(tokenizer)
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    return model, adapter, tokenizer


def base(folder):
    return AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False).eval()


def test_they_start_as_the_mean_of_what_they_were_made_of_and_change_nothing_else(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), base(folder)
    pieces = [tokenizer(text)["input_ids"] for text in NEW]
    assert [len(p) for p in pieces] == [6, 7]  # one token a byte
    logits, fingerprint = model(IDS).logits, base_fingerprint(model)
    weight = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    adapter = LoRA(r=2, new_tokens=NEW).with_tokenizer(tokenizer)
    assert tokenizer("<call>")["input_ids"] == [SIZE]
    adapter.attach(model)
    assert model.config.vocab_size == SIZE + 2
    found = model(IDS).logits
    assert_near(found[..., :SIZE], logits)
    hidden = model.model(IDS).last_hidden_state
    for i, made_of in enumerate(pieces):
        assert_near(found[..., SIZE + i], hidden @ head[made_of].mean(0))
        looked_up = model.get_input_embeddings()(torch.tensor([SIZE + i]))[0]
        assert_close(looked_up, weight[made_of].mean(0))
    assert base_fingerprint(model) == fingerprint
    loss = model(input_ids=torch.tensor([[5, SIZE, SIZE + 1]]), labels=torch.tensor([[5, SIZE, 7]]))
    loss.loss.backward()
    rows = {n: p for n, p in model.named_parameters() if "trainable_tokens_delta" in n}
    tied = weight is head
    assert len(rows) == (1 if tied else 2)
    assert all(p.shape == (2, 32) and p.grad.abs().max() > 0 for p in rows.values())


def test_detach_gives_the_base_back_with_its_vocabulary(folder):
    model = base(folder)
    before, config = model(IDS).logits, copy.deepcopy(model.config.to_dict())
    changed, adapter, _ = extended(folder)
    adapter.detach(changed)
    assert torch.equal(changed(IDS).logits, before)
    assert changed.config.to_dict() == config
    assert changed.vocab_size == model.vocab_size
    assert {n: p.shape for n, p in changed.named_parameters()} == {
        n: p.shape for n, p in model.named_parameters()
    }


def test_a_saved_adapter_is_small_and_enlarges_the_plain_base_by_itself(folder, tmp_path):
    model, adapter, tokenizer = extended(folder)
    save_adapter(adapter, model, tmp_path, tokenizer=tokenizer)
    tied = model.config.tie_word_embeddings
    _, tensors, facts = read_adapter(tmp_path)
    new = {name: t for name, t in tensors.items() if "lora_" not in name}
    assert sum(t.numel() for t in new.values()) == 2 * 32 * (1 if tied else 2)
    assert {text: known["id"] for text, known in facts["new_tokens"].items()} == {
        "<call>": SIZE,
        "</call>": SIZE + 1,
    }
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    fresh = base(folder)
    loaded = load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    again = AutoTokenizer.from_pretrained(folder)
    assert loaded.with_tokenizer(again) == loaded
    assert again("<call></call>")["input_ids"] == [SIZE, SIZE + 1]
    assert again.decode([SIZE, 10], skip_special_tokens=True).startswith("<call>")


def test_hf_peft_reads_the_folder_onto_an_enlarged_base(folder, tmp_path):
    model, adapter, tokenizer = extended(folder)
    save_adapter(adapter, model, tmp_path, tokenizer=tokenizer)
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    enlarged = base(folder)
    enlarged.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path)))
    peft = PeftModel.from_pretrained(enlarged, tmp_path)
    assert_near(peft(ids).logits, model(ids).logits)
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path)  # enlarges by the tokenizer's files
    assert_near(auto(ids).logits, model(ids).logits)


def test_where_the_base_has_rows_to_spare_hf_peft_needs_no_step(tmp_path):
    spare = tiny_model("qwen2", vocab_size=SIZE + 10)
    spare.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model, adapter, tokenizer = extended(tmp_path / "base")
    assert model.config.vocab_size == SIZE + 10
    save_adapter(adapter, model, tmp_path / "adapter", tokenizer=tokenizer)
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    peft = PeftModel.from_pretrained(base(tmp_path / "base"), tmp_path / "adapter")
    assert_near(peft(ids).logits, model(ids).logits)


def test_trained_tokens_of_the_base_and_whole_modules_go_with_them(folder, tmp_path):
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    for name, fields in (
        ("tokens", {"trainable_token_indices": [7]}),
        ("saved", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("half", {"modules_to_save": ["embed_tokens"]}),
    ):
        model, adapter, tokenizer = extended(folder, **fields)
        save_adapter(adapter, model, tmp_path / name, tokenizer=tokenizer)
        fresh = base(folder)
        load_adapter(fresh, tmp_path / name)
        assert torch.equal(fresh(ids).logits, model(ids).logits)
        auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)
        assert_near(auto(ids).logits, model(ids).logits)


def test_a_bank_switches_between_vocabularies(folder, tmp_path):
    model, adapter, tokenizer = extended(folder)
    save_adapter(adapter, model, tmp_path, tokenizer=tokenizer)
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    expected = model(ids).logits
    bank = AdapterBank(plain := base(folder))
    before = plain(IDS).logits
    bank.add("new", tmp_path)
    assert torch.equal(plain(IDS).logits, before)
    bank.use("new")
    assert torch.equal(plain(ids).logits, expected)
    bank.use("base")
    assert plain.config.vocab_size == SIZE
    assert torch.equal(plain(IDS).logits, before)


def test_a_file_names_them_one_a_line(tmp_path):
    (tmp_path / "tokens.txt").write_text("<call>\n</call>\n")
    assert LoRA(new_tokens=str(tmp_path / "tokens.txt")).new_tokens == NEW


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("nowhere.txt", r"'nowhere.txt' is no file; one token alone goes in a list"),
        (["<a>", "<a>"], r"\['<a>'\] are there twice"),
        (["<a>", "  "], r"\['  '\] are blank"),
    ],
)
def test_bad_new_tokens_are_named(tokens, message):
    with pytest.raises(ValueError, match=message):
        LoRA(new_tokens=tokens)


def test_a_text_that_is_a_token_already_is_named():
    with pytest.raises(ValueError, match=r"'a' \(id \d+\) are in the tokenizer already"):
        LoRA(new_tokens=["<call>", "a"]).with_tokenizer(byte_tokenizer())


def test_another_tokenizer_is_refused():
    adapter = LoRA(new_tokens=NEW).with_tokenizer(byte_tokenizer())
    other = byte_tokenizer()
    other.add_tokens(["<other>"])
    with pytest.raises(ValueError, match=rf"other ids: '<call>' {SIZE + 1} instead of {SIZE}"):
        adapter.with_tokenizer(other)


def test_without_the_tokenizer_it_says_how_to_add_them():
    model = tiny_model("llama")
    with pytest.raises(ValueError, match=r"no ids yet: adapter = adapter.with_tokenizer"):
        LoRA(new_tokens=NEW).attach(model)
    assert model.config.vocab_size == 128


RESIZED = {
    "frozen rows": {},
    "tokens": {"trainable_token_indices": [SIZE, SIZE + 1]},
    "tokens of both": {
        "trainable_token_indices": {"embed_tokens": [SIZE, SIZE + 1], "lm_head": [SIZE, SIZE + 1]}
    },
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("situation", RESIZED)
def test_hf_pefts_folder_of_an_enlarged_model_is_read_onto_the_plain_base(
    situation, folder, tmp_path
):
    enlarged = base(folder)
    enlarged.resize_token_embeddings(SIZE + 2)
    fields = {"target_modules": ["q_proj"], **RESIZED[situation]}
    config = LoraConfig(task_type="CAUSAL_LM", r=2, **fields)
    peft = hf_folder(config, enlarged, theirs := tmp_path / "theirs")
    ids = torch.tensor([[5, SIZE, SIZE + 1, 9]])
    model = base(folder)
    before = model(IDS).logits
    adapter = load_adapter(model, theirs)
    assert_near(model(ids).logits, peft(ids).logits)
    save_adapter(adapter, model, ours := tmp_path / "ours")
    if situation != "saved":
        sizes = [(f / "adapter_model.safetensors").stat().st_size for f in (ours, theirs)]
        assert sizes[0] < sizes[1] / 4
    fresh = base(folder)
    load_adapter(fresh, ours)
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, before)
    changed = base(folder)
    changed.get_input_embeddings().weight[3] += 1
    if situation != "saved":
        with pytest.warns(match=r"1 of the \d+ rows of \S*embed_tokens are others in the file"):
            load_adapter(changed, theirs)
        assert_near(changed(ids).logits, peft(ids).logits)


def test_our_facts_say_what_is_new(folder, tmp_path):
    model, adapter, _ = extended(folder)
    save_adapter(adapter, model, tmp_path)
    facts = json.loads((tmp_path / "peft_lightning.json").read_text())
    assert list(facts["new_tokens"]) == sorted(NEW)
    assert facts["new_tokens"]["<call>"]["id"] == SIZE
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert "new_tokens" not in config
    assert config["trainable_token_indices"] in (
        [SIZE, SIZE + 1],
        {"model.embed_tokens": [SIZE, SIZE + 1], "lm_head": [SIZE, SIZE + 1]},
    )
