"""An adapter is asked as it was trained: by generate, chat, predict and the samples of a run."""

import json
import shutil

import pytest

import peft_lightning.inference.generate as generation
import warm_python
from cli_driver import ENVIRONMENT
from peft_lightning import CausalLMModule, SFTDataModule
from peft_lightning.adapters import Full
from peft_lightning.commands.combine import combine
from peft_lightning.commands.generate import generate
from peft_lightning.commands.merge import merge
from peft_lightning.commands.resize import resize
from peft_lightning.inference import load
from peft_lightning.inference.load import load_inference_model
from tiny_run import CHATML, fit, write_base

DATED = (
    "{{ '<|im_start|>date\n' + strftime_now('%Y-%m-%d') + mood | default('') + '<|im_end|>\n' }}"
)
ASKED = ["why?", "who <|im_end|> now?\n\n"]
OPTIONS = {
    "chat_template_kwargs": {"mood": "glad"},
    "template_date": "2025-02-03",
    "system_prompt": "Be brief.",
    "prompt": "Q: {question}",
    "special_tokens_in_text": "keep",
}
FACTS = {**OPTIONS, "chat_template": DATED + CHATML}  # whose copy in the folder has the options


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """A base whose template prints the date, and a variable."""
    folder = write_base(tmp_path_factory.mktemp("dated") / "base")
    (folder / "chat_template.jinja").write_text(DATED + CHATML)
    return folder


@pytest.fixture(scope="module")
def trained(dated, tmp_path_factory):
    """A run's folder, the ids before each answer of its rows, and its samples' ids."""
    root = tmp_path_factory.mktemp("trained")
    rows = root / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": q, "completion": "B"}) + "\n" for q in ASKED))
    spy = Spy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "generate_tokens", spy)
        options = {"sample_prompts": ASKED, "sample_max_new_tokens": 2}
        data = {**OPTIONS, "val": str(rows), "batch_size": 2, "shuffle": False}
        trainer = fit(dated, rows, root / "run", module=options, data=data, max_epochs=1)
    dataset = trainer.datamodule._splits["train"].parts[0]
    want = []
    for i in range(len(ASKED)):
        row = dataset[i]
        first = [label != -100 for label in row["labels"]].index(True)
        want.append([int(token) for token in row["input_ids"][:first]])
    return root / "run" / "checkpoints" / "last.ckpt", want, spy.rows


class Spy:
    """Generates, and keeps the token ids that it was given."""

    def __init__(self):
        self.rows, self._generate = [], generation.generate_tokens

    def __call__(self, model, adapter, tokenizer, rows, *args, **kwargs):
        self.rows += [[int(token) for token in row] for row in rows]
        return self._generate(model, adapter, tokenizer, rows, *args, **kwargs)


@pytest.fixture
def spy(monkeypatch):
    spy = Spy()
    monkeypatch.setattr(load, "generate_tokens", spy)
    monkeypatch.setattr(generation, "generate_tokens", spy)
    return spy


def test_the_folder_says_how_its_prompts_are_made(trained):
    folder, _, _ = trained
    assert json.loads((folder / "peft_lightning.json").read_text())["prompts"] == FACTS


def test_samples_of_the_run_are_asked_as_its_rows(trained):
    _, want, sampled = trained
    assert sampled == want + want  # by the base alone before training, and at the validation


def test_generate_asks_texts_and_rows_as_in_training(trained, spy, tmp_path, capsys):
    folder, want, _ = trained
    generate(ASKED, ckpt_path=str(folder), max_new_tokens=2)
    said = capsys.readouterr().err
    assert "prompts: " in said
    assert "system_prompt Be brief." in said
    assert "template_date 2025-02-03" in said
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": q}) + "\n" for q in ASKED))
    generate(file=str(file), ckpt_path=str(folder), max_new_tokens=2)
    assert spy.rows == want + want


def test_whole_prompts_of_a_file_are_taken_as_they_are_and_it_is_said(
    trained, spy, tmp_path, capsys
):
    folder, want, _ = trained
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": f"Q: {ASKED[0]}"}))
    generate(file=str(tmp_path / "rows.jsonl"), ckpt_path=str(folder), max_new_tokens=2)
    assert spy.rows == want[:1]
    assert "do not fill" in capsys.readouterr().err


def test_options_of_the_command_line_win(trained, dated, spy, capsys):
    folder, want, _ = trained
    given = {
        "system": "Be long.",
        "prompt_template": "",
        "template_date": "2025-02-04",
        "chat_template_kwargs": {"mood": "sad"},
        "special_tokens_in_text": "encode",
    }
    generate(ASKED, ckpt_path=str(folder), max_new_tokens=2, **given)
    said = capsys.readouterr().err
    assert "Be long." in said
    assert "2025-02-04" in said
    assert "Q:" not in said
    tokenizer = load_inference_model(str(dated), {}).tokenizers["base"]
    text = tokenizer.decode(spy.rows[0])
    for piece in ("2025-02-04sad", "Be long.", "user\nwhy?"):
        assert piece in text
    assert spy.rows[1].count(tokenizer.eos_token_id) < want[1].count(tokenizer.eos_token_id)


def test_each_adapter_is_asked_as_it_was_trained(trained, lora_folder_of_dated, spy, capsys):
    folder, want, _ = trained
    generate(ASKED[:1], adapter=[f"a={folder}", f"b={lora_folder_of_dated}"], max_new_tokens=2)
    assert spy.rows[0] == want[0]
    assert spy.rows[1] != want[0]
    said = capsys.readouterr().err
    assert "prompts of a: " in said
    assert "prompts of b: " not in said


@pytest.fixture
def lora_folder_of_dated(trained, tmp_path):
    """The adapter in another folder that does not say how its prompts are made."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in trained[0].iterdir():
        if file.name not in ("SHA256SUMS", "trainer_state.pt"):
            (folder / file.name).write_bytes(file.read_bytes())
    facts = json.loads((folder / "peft_lightning.json").read_text())
    del facts["prompts"]
    (folder / "peft_lightning.json").write_text(json.dumps(facts))
    return folder


def test_chat_asks_as_in_training(trained):
    folder, _, _ = trained
    options = ["--ckpt_path", str(folder), "--max_new_tokens", "6"]
    command = ["-m", "peft_lightning", "chat", *options]
    done = warm_python.run(command, env=ENVIRONMENT, input=f"{ASKED[0]}\n")
    assert done.returncode == 0, done.stderr
    assert "prompts: " in done.stderr
    command = ["-m", "peft_lightning", "generate", *options, "--prompt", ASKED[0]]
    assert done.stdout.strip() == warm_python.run(command, env=ENVIRONMENT).stdout.strip()


def test_a_module_from_a_checkpoint_asks_as_in_training(trained, spy):
    folder, want, _ = trained
    module = CausalLMModule.load_from_checkpoint(folder)
    module.generate(ASKED, 2)
    assert spy.rows == want


def test_predict_of_a_module_from_a_checkpoint_asks_as_in_training(trained, tmp_path):
    import lightning as L

    folder, want, _ = trained
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in ASKED))
    data = SFTDataModule(predict=str(tmp_path / "rows.jsonl"))
    trainer = L.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.predict(CausalLMModule.load_from_checkpoint(folder), data)
    assert [ids for _, ids in data.predict_prompts] == want


def test_predict_of_the_command_line_asks_as_in_training(trained, dated, tmp_path):
    folder, _, _ = trained
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": ASKED[0]}))
    options = ["--model.base_model", str(dated), "--data.predict", str(tmp_path / "rows.jsonl")]
    options += ["--trainer.default_root_dir", str(tmp_path), "--ckpt_path", str(folder)]
    options += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    options += ["--model.adapter.r", "2", "--model.predict_max_new_tokens", "6"]
    for more in ([], ["--data.system_prompt", "T", "--data.prompt", "{question}"]):
        command = ["-m", "peft_lightning", "predict", "--overwrite", *options, *more]
        done = warm_python.run(command, env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        [line] = (tmp_path / "predictions.jsonl").read_text().splitlines()
        given = ["--system", "T", "--prompt_template", ""] if more else []
        command = ["-m", "peft_lightning", "generate", "--ckpt_path", str(folder), *given]
        command += ["--prompt", ASKED[0], "--max_new_tokens", "6"]
        answer = warm_python.run(command, env=ENVIRONMENT).stdout.strip()
        assert json.loads(line)["prediction"] == answer
        assert ("system_prompt" in done.stderr) == (not more)


def test_a_whole_model_is_asked_as_it_was_trained(dated, tmp_path, spy):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "why?", "completion": "B"}))
    data = {"chat_template": "none", "val_fraction": 0}
    trainer = fit(dated, rows, tmp_path / "run", adapter=Full(), data=data, max_epochs=1)
    folder = tmp_path / "run" / "checkpoints" / "last.ckpt"
    generate("why?", ckpt_path=str(folder), max_new_tokens=2)
    CausalLMModule.load_from_checkpoint(folder).generate(["why?"], 2)
    ids = trainer.datamodule._splits["train"].parts[0][0]["input_ids"].tolist()
    assert spy.rows == [ids[: len(spy.rows[0])]] * 2
    assert trainer.datamodule.tokenizer.decode(spy.rows[0]) == "why?"


def prompts_in(folder):
    return json.loads((folder / "peft_lightning.json").read_text()).get("prompts")


def test_adapters_made_of_one_keep_its_prompts(trained, lora_folder_of_dated, tmp_path, capsys):
    folder, _, _ = trained
    resize(str(folder), str(tmp_path / "small"), rank=1)
    combine(str(tmp_path / "both"), str(folder), str(tmp_path / "small"))
    assert prompts_in(tmp_path / "small") == prompts_in(tmp_path / "both") == FACTS
    assert "different prompts" not in capsys.readouterr().out
    combine(str(tmp_path / "mixed"), str(folder), str(lora_folder_of_dated))
    assert prompts_in(tmp_path / "mixed") is None
    assert "different prompts" in capsys.readouterr().out


def test_a_merged_model_has_the_chat_template_with_the_system_prompt_of_the_run(
    trained, tmp_path, spy, capsys
):
    folder, want, _ = trained
    own = tmp_path / "own"
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns("SHA256SUMS", "trainer_state.pt"))
    facts = json.loads((own / "peft_lightning.json").read_text())
    facts["prompts"] = {"chat_template": CHATML.replace("\n", "!"), "system_prompt": "S"}
    (own / "peft_lightning.json").write_text(json.dumps(facts))
    merge(str(own), str(tmp_path / "merged"), verify=False)
    assert "prompts of another form" not in capsys.readouterr().out
    generate("why?", ckpt_path=str(own), max_new_tokens=2)
    generate("why?", base_model=str(tmp_path / "merged"), max_new_tokens=2)
    assert spy.rows[0] == spy.rows[1] != want[0]
