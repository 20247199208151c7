"""From training to the merged model by the commands themselves: one template, one answer."""

import json

import pytest
from transformers import AutoTokenizer

import warm_python
from cli_driver import ENVIRONMENT, drive
from tiny_run import CHATML, write_base

TEMPLATE = CHATML.replace("<|im_start|>", "<|im_start|>~")
ASKED, NEW = "why is it so?", "10"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose template is a file of its own, over a base without one, and its outputs."""
    place = tmp_path_factory.mktemp("run")
    base = write_base(place / "base")
    (base / "chat_template.jinja").unlink()
    (place / "own.jinja").write_text(TEMPLATE)
    rows = [{"prompt": ASKED, "completion": "ok"}, {"prompt": "so?", "completion": "no"}]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (place / "asked.jsonl").write_text(json.dumps({"prompt": ASKED}))
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    quiet += ["--trainer.precision=32-true"]  # as the base is saved: generate does not round it
    model = ["--model.base_model=base", "--model.adapter.r=2", f"--model.sample_prompts=[{ASKED}]"]
    model += [f"--model.sample_max_new_tokens={NEW}", f"--model.predict_max_new_tokens={NEW}"]
    data = ["--data.chat_template=own.jinja", "--data.system_prompt=Be brief."]
    ckpt = "run/checkpoints/last.ckpt"
    lines = [
        ["fit", *model, *quiet, *data, "--data.train=rows.jsonl", "--data.val=rows.jsonl",
         "--trainer.max_steps=6", "--model.learning_rate=0.03", "--trainer.default_root_dir=run"],
        ["generate", "--ckpt_path", ckpt, "--prompt", ASKED, "--max_new_tokens", NEW],
        ["predict", *model, *quiet, "--data.predict=asked.jsonl", "--ckpt_path", ckpt,
         "--trainer.default_root_dir=predicted"],
        ["merge", ckpt, "merged"],
        ["generate", "--base_model", "merged", "--prompt", ASKED, "--max_new_tokens", NEW],
    ]  # fmt: skip
    done = drive(place, lines)
    assert [status or 0 for status, _, _ in done] == [0] * len(lines), done
    samples = [json.loads(x) for x in (place / "run/samples.jsonl").read_text().splitlines()]
    return place, samples[-1]["prediction"], done


def test_each_command_answers_as_the_run_did(run):
    place, want, done = run
    assert len(want) > 2
    assert done[1][1].strip() == want
    [line] = (place / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["prediction"] == want
    assert done[4][1].strip() == want


def test_the_tokenizers_of_checkpoint_and_merged_folder_have_the_runs_template(run):
    place, _, _ = run
    turns = [{"role": "user", "content": ASKED}]
    for folder in ("run/checkpoints/last.ckpt", "merged"):
        tokenizer = AutoTokenizer.from_pretrained(place / folder)
        assert tokenizer.chat_template.endswith(TEMPLATE)
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.startswith("<|im_start|>~system\nBe brief.<|im_end|>\n<|im_start|>~user\nwhy")


def test_the_base_of_a_chat_answers_without_the_adapters_turns(run):
    place, want, _ = run
    options = ["--ckpt_path", "run/checkpoints/last.ckpt", "--max_new_tokens", NEW]

    def said(*lines):
        command = ["-m", "peft_lightning", "chat", *options]
        text = "\n".join(lines) + "\n"
        done = warm_python.run(command, env=ENVIRONMENT, cwd=place, input=text)
        assert done.returncode == 0, done.stderr
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    alone = said("/base", ASKED)
    mixed = said(ASKED, "so?", "/base", ASKED, f"/adapter {options[1]}", "/reset", ASKED)
    assert mixed[0] == mixed[-1] == want
    assert mixed[2:3] == alone[:1] != [want]
