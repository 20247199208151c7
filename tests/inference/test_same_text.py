"""One prompt has one greedy answer: from each command, the samples of a run, HF's ways to ask."""

import json
import shutil

import lightning as L
import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from model_checks import write_model
from peft_lightning import CausalLMModule, LoRA, SFTDataModule, UserError
from peft_lightning.commands.generate import generate
from peft_lightning.commands.merge import merge
from peft_lightning.inference.chat_session import ChatSession
from peft_lightning.inference.load import load_inference_model
from tiny_run import CHATML, fit

KINDS = ["llama", "falcon_h1", "jamba", "mamba", "rwkv"]
ASKED = ["why?", "say 7 ab ab ab, please", "who are you, and what is it that you see from there?"]
TEMPLATE = CHATML.replace("<|im_start|>", "<|im_start|>~")  # of the run, not of the base
NEW, STEPS = 10, 4


def write_rows(file, prompts, **more):
    file.write_text("".join(json.dumps({"prompt": q, **more}) + "\n" for q in prompts))
    return str(file)


def train(kind, place, **module):
    """Return the checkpoint of a run with its own template and system prompt, and its samples."""
    write_model(kind, place / "base")
    model = AutoModelForCausalLM.from_pretrained(place / "base")
    for name, parameter in model.named_parameters():
        parameter.data *= 1.5 if parameter.ndim > 1 and "A_log" not in name else 1
    model.save_pretrained(place / "base")
    (place / "own.jinja").write_text(TEMPLATE)
    rows = write_rows(place / "rows.jsonl", ASKED * 4, completion="ok")
    data = {"val": rows, "system_prompt": "Be brief.", "chat_template": str(place / "own.jinja")}
    fit(
        place / "base",
        rows,
        place / "run",
        adapter=LoRA(r=4, target_modules=r".*(q_proj|up_proj|in_proj|key|x_proj)"),
        module={"sample_prompts": ASKED, "sample_max_new_tokens": NEW, **module},
        data={**data, "layout": "padded"},
        max_steps=STEPS,
    )
    lines = [json.loads(x) for x in (place / "run" / "samples.jsonl").read_text().splitlines()]
    samples = {x["prompt"]: x["prediction"] for x in lines if x["step"] == STEPS}
    return place / "run" / "checkpoints" / "last.ckpt", [samples[q] for q in ASKED]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    ckpt, samples = train(request.param, place)
    merge(str(ckpt), str(place / "merged"))
    return ckpt, place / "merged", samples


def by_generate(ckpt, folder, together, prompts=ASKED, **options):
    out = folder / f"{together}.jsonl"
    out.unlink(missing_ok=True)
    file = write_rows(folder / "asked.jsonl", prompts)
    options = {"max_new_tokens": NEW, "batch_size": together, **options}
    generate(ckpt_path=str(ckpt), file=file, output=str(out), **options)
    return [json.loads(line)["prediction"] for line in out.read_text().splitlines()]


def by_predict(ckpt, folder, prompts=ASKED, **module):
    module = CausalLMModule.load_from_checkpoint(ckpt, predict_max_new_tokens=NEW, **module)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = SFTDataModule(predict=write_rows(folder / "asked.jsonl", prompts))
    found = {a["index"]: a["text"] for batch in trainer.predict(module, data) for a in batch}
    return [found[i] for i in range(len(prompts))]


def by_chat(ckpt, capsys, **options):
    """Return the answers of a chat, and what it has printed."""
    session = ChatSession(load_inference_model(None, {"a": str(ckpt)}), NEW, **options)
    capsys.readouterr()
    answers = []
    for prompt in ASKED:
        session.reset()
        answers.append(session.answer(prompt))
    return answers, capsys.readouterr().out


def turns_of(prompt):
    """Return a conversation without the system prompt, which is in the folder's template."""
    return [{"role": "user", "content": prompt}]


def by_hf(model, tokenizer, prompts):
    """Return the answers of transformers' generate to one batch, padded on the left."""
    tokenizer.padding_side = "left"
    options = {"return_tensors": "pt", "return_dict": True, "padding": True}
    turns = [turns_of(prompt) for prompt in prompts]
    inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, **options)
    found = model.eval().generate(**inputs, max_new_tokens=NEW, do_sample=False)
    answers = found[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def by_pipeline(folder):
    """Return the answers of transformers' pipeline, which else takes the base's tokenizer."""
    pipe = pipeline("text-generation", model=str(folder), tokenizer=str(folder), device="cpu")
    found = [pipe(turns_of(q), max_new_tokens=NEW, do_sample=False)[0] for q in ASKED]
    return [answer["generated_text"][-1]["content"].strip() for answer in found]


def test_samples_generate_predict_and_chat_give_one_text(trained, tmp_path, capsys):
    ckpt, merged, samples = trained
    assert len(set(samples)) > 1  # they depend on the prompt
    assert by_generate(ckpt, tmp_path, 1) == samples
    assert by_generate(ckpt, tmp_path, 3) == samples
    assert by_predict(ckpt, tmp_path) == samples
    answers, printed = by_chat(ckpt, capsys)
    assert answers == samples
    assert printed == "".join(f"{answer}\n" for answer in samples)
    generate(ASKED[1], base_model=str(merged), max_new_tokens=NEW)
    assert capsys.readouterr().out.strip() == samples[1]
    options = {"system": "Be brief.", "chat_template": str(merged / "chat_template.jinja")}
    generate(ASKED[1], base_model=str(merged.parent / "base"), max_new_tokens=NEW, **options)
    assert capsys.readouterr().out.strip() != samples[1]  # the adapter does something


def test_hf_pefts_generate_and_transformers_pipeline_give_it_too(trained):
    ckpt, merged, samples = trained
    tokenizer = AutoTokenizer.from_pretrained(ckpt)
    assert tokenizer.chat_template.endswith(TEMPLATE)
    for model in (
        AutoPeftModelForCausalLM.from_pretrained(ckpt),
        AutoModelForCausalLM.from_pretrained(merged),
        AutoModelForCausalLM.from_pretrained(ckpt),  # transformers' own way to an adapter
    ):
        assert [by_hf(model, tokenizer, [q])[0] for q in ASKED] == samples
        if model.config.model_type != "rwkv":  # whose state takes in the padding there
            assert by_hf(model, tokenizer, ASKED) == samples
    assert by_pipeline(merged) == by_pipeline(ckpt) == samples


def test_a_stop_string_ends_the_answers_of_all_of_them(tmp_path, capsys):
    ckpt, samples = train("llama", tmp_path)
    stop = samples[1][3:5]  # two characters in the midst of one of the answers
    want = [text.partition(stop)[0].strip() for text in samples]
    assert want[1] == samples[1][:3].strip()
    assert by_generate(ckpt, tmp_path, 1, stop=[stop]) == want
    assert by_generate(ckpt, tmp_path, 3, stop=[stop]) == want
    assert by_predict(ckpt, tmp_path, stop=[stop]) == want
    answers, printed = by_chat(ckpt, capsys, stop=[stop])
    assert answers == want
    assert printed == "".join(f"{answer}\n" for answer in want)  # also while it is printed
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "run")
    assert train("llama", tmp_path, stop=[stop])[1] == want


def test_a_prompt_beyond_the_positions_is_refused_by_all_of_them_before_any_answer(
    tmp_path, capsys
):
    ckpt, _ = train("llama", tmp_path)
    asked = ["why?", "w" * 400]
    with pytest.raises(UserError, match=r"prompt 2 has 4\d\d tokens.*exceeds the model's 256 pos"):
        by_generate(ckpt, tmp_path, 1, asked)
    with pytest.raises(UserError, match=r"row 2 of data.predict has 4\d\d tokens.*256 positions"):
        by_predict(ckpt, tmp_path, asked)
    session = ChatSession(load_inference_model(None, {"a": str(ckpt)}), NEW)
    with pytest.raises(UserError, match="exceeds the model's 256 positions"):
        session.answer(asked[1])
    assert session.messages == []
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(UserError, match=r"sample_prompts: prompt 2 has 4\d\d tokens"):
        train("llama", tmp_path, sample_prompts=asked)
    assert not list(tmp_path.glob("[13].jsonl"))


def test_a_model_without_a_limit_of_positions_answers_beyond_those_of_its_config(tmp_path):
    ckpt, _ = train("mamba", tmp_path)
    asked = ["w" * 400, "why?"]
    model = AutoPeftModelForCausalLM.from_pretrained(ckpt)
    tokenizer = AutoTokenizer.from_pretrained(ckpt)
    want = [by_hf(model, tokenizer, [q])[0] for q in asked]
    assert by_generate(ckpt, tmp_path, 2, asked) == want
