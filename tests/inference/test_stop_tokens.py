"""The ids that end an answer: one set for each command that generates."""

import json

import lightning as L
import pytest
from transformers import GenerationMixin

from peft_lightning import CausalLMModule, LoRA, SFTDataModule, save_adapter
from peft_lightning.base_model import base_fingerprint, load_base_model
from peft_lightning.commands.generate import generate
from peft_lightning.data.rows.conversations import Conversation
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.inference.stop_tokens import stop_token_ids
from template_families import FAMILIES
from tiny import tiny_model
from tiny_run import CHATML, byte_tokenizer


def test_the_end_of_a_turn_ends_an_answer_though_another_token_is_eos():
    tokenizer = byte_tokenizer()
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<unk>"
    assert stop_token_ids(tiny_model("llama"), tokenizer) == {turn, tokenizer.eos_token_id}


def test_without_a_chat_template_the_eos_token_ends_an_answer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, "<unk>"
    assert stop_token_ids(tiny_model("llama"), tokenizer) == {tokenizer.eos_token_id}


def test_all_end_tokens_of_a_model_end_an_answer():
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    model.generation_config.eos_token_id = [4, 5]
    assert stop_token_ids(model, tokenizer) == {4, 5, tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("closing", "ends"),
    [
        ("<|a|>", ["<|a|>"]),
        ("\n<|a|>\n", ["<|a|>"]),
        ("<|a|>\n<|b|>", ["<|a|>", "<|b|>"]),
        ("\n###<|a|>", ["<|a|>"]),
        ("<turn b>", ["<turn b>"]),  # an added token that is not special
        ("###\n", []),
    ],
)
def test_the_tokens_that_close_a_turn_end_an_answer(closing, ends):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|a|>", "<|b|>"], special_tokens=True)
    tokenizer.add_tokens(["<turn b>"])
    tokenizer.chat_template = CHATML.replace("<|im_end|>\n", closing)
    want = {tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(ends)}
    assert stop_token_ids(tiny_model("llama"), tokenizer) == want


# the last token in the loss of an answer, and of a tool call if the template prints calls
FAMILY_ENDS = {
    "chatml": ("<|im_end|>",),
    "llama-3": ("<|eot_id|>", "<|eot_id|>"),
    "gemma": ("<end_of_turn>",),
    "mistral-v1": ("</s>",),
    "mistral-v3": ("</s>", "</s>"),
    "mistral-v7": ("</s>", "</s>"),
    "qwen-2.5": ("<|im_end|>", "<|im_end|>"),
    "qwen-3": ("<|im_end|>", "<|im_end|>"),
    "qwq": ("<|im_end|>",),
    "phi-3": ("<|end|>",),
    "phi-4": ("<|im_end|>",),
    "deepseek-v3": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
    "deepseek-r1": ("<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),  # noqa: RUF001
    "olmo-2": ("<|endoftext|>",),
    "granite": ("<|end_of_text|>", "<|end_of_text|>"),
    "command-r": ("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    "smollm-3": ("<|im_end|>", "<|im_end|>"),
    "harmony": ("<|return|>", "<|call|>"),
    "vicuna": ("</s>",),
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call12345", "function": {"name": "look", "arguments": {"x": 1}}}],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_tokens_that_a_family_trains_end_its_answers(family):
    tokenizer = FAMILIES[family].tokenizer()
    tokens = FAMILY_ENDS[family]
    stops = stop_token_ids(tiny_model("llama"), tokenizer)
    assert set(tokenizer.convert_tokens_to_ids(list(tokens))) <= stops
    answers = [{"role": "assistant", "content": "B"}, CALL]
    for token, answer in zip(tokens, answers, strict=False):
        row = Conversation([{"role": "user", "content": "A"}, answer])
        ((part,),) = RowTokenizer(tokenizer).tokenize([row])
        trained = part.input_ids[part.loss_weights > 0]
        assert tokenizer.convert_ids_to_tokens(int(trained[-1])) == token


def test_tokens_that_go_on_with_an_answer_do_not_end_it():
    tokenizer = FAMILIES["harmony"].tokenizer()  # <|end|> ends a thought, and an answer as history
    stops = stop_token_ids(tiny_model("llama"), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in stops
    tokenizer = FAMILIES["command-r"].tokenizer()
    stops = stop_token_ids(tiny_model("llama"), tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|START_RESPONSE|>") not in stops


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """A base whose generation config, tokenizer and chat template each end with another token."""
    folder = tmp_path_factory.mktemp("divided")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|model|>", "<|turn|>", "<|other|>"], special_tokens=True)
    tokenizer.eos_token = "<unk>"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|turn|>")
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|model|>")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "other.jinja").write_text(CHATML.replace("<|im_end|>", "<|other|>"))
    return folder, tokenizer


@pytest.fixture
def stopped_at(monkeypatch):
    """The sets of ids at which transformers' generate was told to stop."""
    found, original = [], GenerationMixin.generate

    def remember(self, *args, generation_config, **kwargs):
        found.append(set(generation_config.eos_token_id))
        return original(self, *args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", remember)
    return found


@pytest.mark.parametrize(
    ("template", "turn"), [(None, ["<|turn|>"]), ("other.jinja", ["<|other|>"]), ("none", [])]
)
def test_predict_and_generate_stop_at_the_same_ids(divided, stopped_at, tmp_path, template, turn):
    folder, tokenizer = divided
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a"}) + "\n")
    if template == "other.jinja":
        template = str(folder / template)
    generate(base_model=str(folder), prompt="a", max_new_tokens=2, chat_template=template)
    module = CausalLMModule(str(folder), predict_max_new_tokens=2)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = SFTDataModule(predict=str(rows), chat_template=template, cache_dir=str(tmp_path))
    trainer.predict(module, datamodule=data)
    want = {*tokenizer.convert_tokens_to_ids(["<unk>", "<|model|>", *turn])}
    assert stopped_at == [want, want]


def test_a_new_token_of_an_adapter_that_closes_a_turn_ends_its_answers(base, stopped_at, tmp_path):
    template = tmp_path / "new.jinja"
    template.write_text(CHATML.replace("<|im_end|>", "<|new|>"))
    model, tokenizer = load_base_model(str(base)), byte_tokenizer()
    adapter = LoRA(r=2, new_tokens=["<|new|>"]).with_tokenizer(tokenizer)
    facts = {"base_fingerprint": base_fingerprint(model), "base_model": str(base)}
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "adapter", facts, tokenizer)
    generate(
        ckpt_path=str(tmp_path / "adapter"),
        base_model=str(base),
        prompt="a",
        max_new_tokens=2,
        chat_template=str(template),
    )
    assert tokenizer.convert_tokens_to_ids("<|new|>") in stopped_at[0]
