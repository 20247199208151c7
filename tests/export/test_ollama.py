"""The Modelfile beside a GGUF file, and what the file itself says of how answers end."""

import gguf
import pytest

import go_template
from gguf_bases import write_adapter
from peft_lightning.adapters import LoRA, save_adapter
from peft_lightning.base_model import load_base_model, resolve
from peft_lightning.base_model.resolve import tokenizer_files_in
from peft_lightning.commands.export import export
from peft_lightning.data import ChatTemplate, PromptFormat, load_templates
from peft_lightning.export.answering import Answering
from peft_lightning.export.chat_turns import find_turns
from peft_lightning.export.ollama import modelfile, write_modelfile
from template_families import FAMILIES
from tiny import tiny_model
from tiny_gguf import digit_tokenizer
from tiny_run import CHATML

WITHOUT_SYSTEM = {"gemma", "mistral-v1", "mistral-v3"}  # none, or printed with the last question


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama", vocab_size=len(digit_tokenizer())).save_pretrained(folder)
    digit_tokenizer().save_pretrained(folder)
    return folder


def fields(file):
    return {name: f.contents() for name, f in gguf.GGUFReader(file).fields.items()}


def talk(count, with_system):
    roles = ["system"] * with_system + ["user", "assistant"] * count
    return [{"role": role, "content": f"{i}. {role}"} for i, role in enumerate(roles)][:count]


@pytest.mark.parametrize("family", FAMILIES)
def test_ollama_prints_a_conversation_as_the_chat_template_does(family):
    tokenizer = FAMILIES[family].tokenizer()
    chat = ChatTemplate(tokenizer, load_templates(tokenizer, None))
    turns = find_turns(tokenizer, PromptFormat())
    assert (turns.before_system is None) == (family in WITHOUT_SYSTEM)
    bos = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else ""
    for with_system in (False, True)[: 1 + (family not in WITHOUT_SYSTEM)]:
        for count in (1 + with_system, 3 + with_system, 7 + with_system):
            messages = talk(count, with_system)
            text = chat.render(messages, generation_prompt=True).removeprefix(bos or "")
            assert go_template.render(turns.as_go(), messages) == text


def test_braces_of_a_template_are_no_actions_of_gos():
    tokenizer = digit_tokenizer()
    tokenizer.chat_template = CHATML.replace("<|im_start|>{{", "{{ '{{' }}{{")
    turns = find_turns(tokenizer, PromptFormat())
    messages = talk(3, with_system=False)
    text = ChatTemplate(tokenizer, load_templates(tokenizer, None)).render(messages, None, True)
    assert "{{user" in text
    assert go_template.render(turns.as_go(), messages) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("m.content", "m.content | upper"), "does not print the content of every"),
        (CHATML.replace("m.content", "loop.length ~ m.content"), "prints 1 messages otherwise"),
        (CHATML.replace("<|im_end|>", '"""'), 'it prints """, with which a Modelfile ends'),
    ],
)
def test_a_template_that_cannot_be_converted_is_said(template, reason, tmp_path):
    tokenizer = digit_tokenizer()
    tokenizer.chat_template = template
    if "loop.length" in template:  # of the conversation that the parts are of, and of no other
        template = template.replace("loop.length ~ ", "('' if loop.length < 2 else 'x') ~ ")
        tokenizer.chat_template, reason = template, "otherwise than turn by turn"
    out = tmp_path / "m.gguf"
    said = write_modelfile(out, Answering(tokenizer, PromptFormat(), [2]), is_adapter=False)
    assert "has no TEMPLATE, as the chat template cannot be one of Ollama's: " in said
    assert reason in said
    text = (tmp_path / "m.Modelfile").read_text()
    assert f"# no TEMPLATE, as {said.partition(', as ')[2]}" in text
    assert "TEMPLATE " not in text.replace("# no TEMPLATE", "")


def test_a_system_prompt_that_the_template_has_no_place_for_is_said(tmp_path):
    asked = Answering(FAMILIES["gemma"].tokenizer(), PromptFormat(system_prompt="Be kind."), [2])
    assert "has no TEMPLATE" in write_modelfile(tmp_path / "m.gguf", asked, is_adapter=False)


def test_the_modelfile_has_ollamas_instructions(base, tmp_path, capsys):
    prompts = PromptFormat(system_prompt="Be kind.\nAlways.")
    model = load_base_model(str(base))
    (adapter := LoRA(r=2)).attach(model)
    save_adapter(adapter, model, tmp_path / "ckpt", {"prompts": prompts.facts()})
    for name, options in (("m", {"type": "model", "verify": False}), ("lora", {})):
        export(str(tmp_path / "ckpt"), str(tmp_path / f"{name}.gguf"), **options)
    said = capsys.readouterr().out
    assert f"for Ollama: ollama create NAME -f {tmp_path / 'm.Modelfile'}" in said
    assert "prompts of another form" not in said  # the system prompt is in the Modelfile
    text = (tmp_path / "m.Modelfile").read_text()
    assert text.splitlines()[1] == "FROM ./m.gguf"
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    messages = talk(4, with_system=True)
    chat = ChatTemplate(digit_tokenizer(), {"default": CHATML})
    assert go_template.render(template, messages) == chat.render(messages, None, True)
    assert 'PARAMETER stop "<|im_end|>"\nSYSTEM """Be kind.\nAlways."""\n' in text
    lora = (tmp_path / "lora.Modelfile").read_text()
    assert "FROM ./BASE.gguf\nADAPTER ./lora.gguf\n" in lora
    assert lora.partition("TEMPLATE")[2] == text.partition("TEMPLATE")[2]


def test_plain_text_is_the_prompt_alone():
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile(
        "m.gguf", None, None, [], PromptFormat(), False
    )


def test_the_runs_template_and_every_end_token_are_in_the_gguf_file(base, tmp_path):
    turns = CHATML.replace("<|im_end|>", "<unk>")
    model = load_base_model(str(base))
    (adapter := LoRA(r=2)).attach(model)
    save_adapter(adapter, model, tmp_path / "ckpt", {"prompts": {"chat_template": turns}})
    export(str(tmp_path / "ckpt"), str(tmp_path / "m.gguf"), type="model", verify=False)
    known = fields(tmp_path / "m.gguf")
    ids = digit_tokenizer().get_vocab()
    assert known["tokenizer.chat_template"] == turns
    assert known["tokenizer.ggml.eos_token_id"] == ids["<|im_end|>"]
    assert known["tokenizer.ggml.eot_token_id"] == ids["<unk>"]
    stops = [line for line in (tmp_path / "m.Modelfile").read_text().splitlines() if "stop" in line]
    assert stops == ['PARAMETER stop "<|im_end|>"', 'PARAMETER stop "<unk>"']


def test_a_lora_is_written_though_its_base_has_no_tokenizer(tmp_path, capsys):
    base = tmp_path / "base"
    tiny_model("llama", vocab_size=len(digit_tokenizer())).save_pretrained(base)
    ckpt = write_adapter(base, tmp_path / "ckpt", LoRA(r=2))
    for name in tokenizer_files_in(ckpt):
        (ckpt / name).unlink()
    export(str(ckpt), str(tmp_path / "x.gguf"))
    assert "no Modelfile is written: cannot load the tokenizer of" in capsys.readouterr().out
    assert (tmp_path / "x.gguf").is_file()
