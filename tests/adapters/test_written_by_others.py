"""Adapters that other programs train and write themselves: TRL, and transformers' own adapters."""

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from parity import randomise
from peft_lightning.adapters import LoRA, save_adapter
from peft_lightning.base_model import load_base_model
from peft_lightning.commands.generate import generate
from peft_lightning.commands.merge import merge
from rounding import assert_near
from tiny_run import fit, write_base, write_rows

TURNS = (
    "{% for m in messages %}{{ ('<|user|>' if m.role == 'user' else '<|bot|>') + m.content }}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}"
)
ASKED = "say 3"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base without a chat template, whose vocabulary TRL's run enlarges."""
    folder = write_base(tmp_path_factory.mktemp("others") / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module", params=["resized", "whole embeddings"])
def of_trl(request, plain, tmp_path_factory):
    """The folder of a run of TRL, and the answer of its model."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    place = tmp_path_factory.mktemp("trl")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|bot|>"]})
    tokenizer.chat_template = TURNS
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(plain)
    model.resize_token_embeddings(len(tokenizer))
    turns = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "ok ok"}]
    rows = datasets.Dataset.from_list([{"messages": turns} for _ in range(4)])
    quiet = {"report_to": [], "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    how = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": 2}
    saved = {} if request.param == "resized" else {"modules_to_save": ["embed_tokens", "lm_head"]}
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(str(place / "run"), learning_rate=1e-2, **quiet, **how),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "up_proj"], **saved),
    )
    trainer.train()
    with torch.no_grad():  # an update that decides the answer
        randomise({n: p for n, p in trainer.model.named_parameters() if "lora_" in n})
    trainer.save_model(str(place / "adapter"))
    return place / "adapter", answer_of(trainer.model.eval(), tokenizer)


def answer_of(model, tokenizer):
    turns = [{"role": "user", "content": ASKED}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template(turns, **options)
    [ids] = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answer = ids[inputs["input_ids"].shape[1] :]
    return tokenizer.decode(answer, skip_special_tokens=True).strip()


def test_an_adapter_of_trl_answers_as_there_merged_too_and_trains_on(
    of_trl, plain, tmp_path, capsys
):
    folder, want = of_trl
    assert len(want) > 2
    generate(ASKED, ckpt_path=str(folder), max_new_tokens=8)
    assert capsys.readouterr().out.strip() == want
    merge(str(folder), str(tmp_path / "merged"))
    assert "verified on" in capsys.readouterr().out
    generate(ASKED, base_model=str(tmp_path / "merged"), max_new_tokens=8)
    assert capsys.readouterr().out.strip() == want
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert answer_of(theirs, AutoTokenizer.from_pretrained(tmp_path / "merged")) == want
    rows = write_rows(tmp_path / "rows.jsonl", 4)
    options = {"init_from": str(folder)}
    fit(plain, rows, tmp_path / "run", adapter=LoRA(), module=options, max_steps=1)
    ours = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert AutoTokenizer.from_pretrained(ours).chat_template == TURNS


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"lora_bias": True}], ids=str)
def test_what_transformers_own_add_adapter_saves_is_read_and_ours_is_read_by_load_adapter(
    fields, base, tmp_path, capsys
):
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **fields)
    model.add_adapter(config)
    with torch.no_grad():
        randomise({n: p for n, p in model.named_parameters() if "lora_" in n})
    model.eval().save_pretrained(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(base)
    generate(ASKED, ckpt_path=str(tmp_path / "theirs"), base_model=str(base), max_new_tokens=8)
    assert capsys.readouterr().out.strip() == answer_of(model, tokenizer)
    ours, ids = load_base_model(str(base)), torch.arange(3, 17)[None]
    (adapter := LoRA(r=4, target_modules=["q_proj"], **fields)).attach(ours)
    with torch.no_grad():
        randomise(adapter.state_dict(ours))
    save_adapter(adapter, ours, tmp_path / "ours")
    read = AutoModelForCausalLM.from_pretrained(base)
    read.load_adapter(str(tmp_path / "ours"))
    assert_near(read.eval()(ids).logits, ours(ids).logits)
