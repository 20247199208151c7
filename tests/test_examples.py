"""The examples run as they stand, on a tiny base, and do what they say."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import warm_python
from exactness import RATE, train
from peft_lightning import CausalLMModule, LoRA, SFTDataModule
from tiny_run import byte_tokenizer, write_base

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HOME = EXAMPLES / "home_assistant"


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A working folder that looks like the repository's root, with a cache of its own."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def python(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    return warm_python.run(args, cwd=folder, env={**os.environ, **environment})


def records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (HOME / name).read_text("utf-8").splitlines()]


def test_the_table_of_examples_links_to_every_one():
    linked = re.findall(r"\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text())
    there = {file.name for file in EXAMPLES.iterdir() if file.name[0] not in "._"}
    assert {link.split("/")[0] for link in linked} == there - {"README.md"}
    assert all((EXAMPLES / link).exists() for link in linked)


# ---- label smoothing --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2: unlike Llama's norm and positions, all of it computes in float64."""
    return write_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


def step_by_torch(base: Path, rows: Path, smoothing: float) -> tuple[float, dict[str, Any]]:
    """Return torch's mean loss over the answers of all rows, and the tensors after a step on it."""
    L.seed_everything(0, verbose=False)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = LoRA(r=2, init_lora_weights=False)
    adapter.attach(model)
    model.double()
    tokenizer, logits, targets = byte_tokenizer(), [], []
    for line in rows.read_text().splitlines():
        row = json.loads(line)
        prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        start = len(tokenizer(prompt)["input_ids"])
        ids = tokenizer(f"{prompt}{row['completion']}<|im_end|>")["input_ids"]
        logits.append(model(torch.tensor([ids])).logits[0, start - 1 : -1])
        targets.append(torch.tensor(ids[start:]))
    loss = F.cross_entropy(torch.cat(logits), torch.cat(targets), label_smoothing=smoothing)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter -= RATE * parameter.grad
    return loss.item(), adapter.state_dict(model)


@pytest.mark.parametrize("layout", ["flat", "padded"])
def test_label_smoothing_is_torchs_mean_over_the_tokens_of_all_micro_batches(
    layout, user, gpt2, rows
):
    from examples.label_smoothing import LabelSmoothing

    trainer, ours = train(
        gpt2,
        rows,
        user / "run",
        module_class=LabelSmoothing,
        module={"smoothing": 0.3},
        data={"batch_size": 5, "layout": layout},
        accumulate_grad_batches=5,  # 24 rows: four micro-batches of 5, one of 4
    )
    loss, theirs = step_by_torch(gpt2, rows, 0.3)
    assert trainer.global_step == 1
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(loss, rel=1e-6)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)


def test_label_smoothing_validates_with_the_plain_loss(user, base, rows):
    from examples.label_smoothing import LabelSmoothing

    module = LabelSmoothing(str(base), LoRA(r=2), smoothing=0.3)
    module.configure_model()
    data = SFTDataModule(train=str(rows), tokenizer=str(base), cache_dir=str(user / "cache"))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    plain, tokens = CausalLMModule.nll(module, batch)
    smoothed, same_tokens = module.nll(batch)
    assert tokens == same_tokens
    assert (smoothed - plain).abs() > 0.01  # of some 800; float32 rounds at 1e-4
    assert module.eval().nll(batch)[0] == plain


def test_a_smoothing_out_of_range_is_named(user):
    from examples.label_smoothing import LabelSmoothing

    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\), got 1\.0"):
        LabelSmoothing("x", smoothing=1.0)


@pytest.mark.parametrize(
    ("name", "kind"), [("label_smoothing", "LabelSmoothing"), ("my_ia3", "examples.my_ia3.IA3")]
)
def test_the_config_of_ones_own_class_trains_from_the_repositorys_root(user, base, name, kind):
    done = python(
        user,
        *["-m", "peft_lightning", "fit", "--config", f"examples/{name}.yaml"],
        *["--model.base_model", str(base), "--model.dtype", "float32"],
        *["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"],
        *["--trainer.accelerator", "cpu", "--data.cache_dir", "cache"],
    )
    assert done.returncode == 0, done.stderr
    root = user / "runs" / name
    assert kind in (root / "config.yaml").read_text()
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)


# ---- the notebook -----------------------------------------------------------------------------


def test_the_notebook_trains_saves_and_loads_and_hf_peft_computes_its_logits(user, base):
    cells, commented = (EXAMPLES / "notebook.py").read_text().rsplit("# %%\n", 1)
    assert all(line.startswith("#") for line in commented.splitlines())
    for_peft = "".join(line[2:] + "\n" for line in commented.splitlines())
    (user / "notebook.py").write_text(cells + for_peft)
    done = python(user, "notebook.py", str(base))
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) >= 3
    assert losses[-1] < losses[0] - 0.1
    assert (user / "runs" / "notebook" / "adapter" / "adapter_config.json").is_file()
    difference = re.search(r"differ from ours by at most (\S+)", done.stdout)
    assert float(difference[1]) < 1e-4


def test_the_options_of_a_notebooks_kernel_are_not_taken_for_a_model(monkeypatch):
    cell = (EXAMPLES / "notebook.py").read_text().split("# %%\n")[1].split("# %%")[0]
    base = re.search(r'^BASE = "(.*?)"', cell, re.MULTILINE)[1]
    rows = re.search(r'^ROWS = "(.*?)"', cell, re.MULTILINE)[1]
    for arguments, expected in (
        (["-f", "kernel.json"], [base, rows]),
        (["--f=kernel.json"], [base, rows]),
        (["own/model"], ["own/model", rows]),
        (["own/model", "own.jsonl"], ["own/model", "own.jsonl"]),
    ):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        names: dict[str, Any] = {}
        exec(cell, names)
        assert [names["BASE"], names["ROWS"]] == expected


# ---- the home assistant's rows ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("train.jsonl", 320), ("val.jsonl", 80)])
def test_every_completion_is_a_call_of_a_function_that_the_readme_counts(name, least):
    table = re.findall(
        r"^\| `(\w+)` \| .* \| (\d+) \| (\d+) \|$",
        (HOME / "README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    column = {"train.jsonl": 1, "val.jsonl": 2}[name]
    calls = [json.loads(row["completion"]) for row in records(name)]
    assert len(calls) >= least
    assert all(call.keys() == {"function", "arguments"} for call in calls)
    assert Counter(call["function"] for call in calls) == {
        row[0]: int(row[column]) for row in table
    }


def test_every_completion_is_written_in_one_way():
    for row in records("train.jsonl") + records("val.jsonl"):
        assert row.keys() == {"prompt", "completion"}
        assert row["completion"] == json.dumps(json.loads(row["completion"]), ensure_ascii=False)


def test_no_prompt_is_repeated_so_none_of_val_is_in_train():
    prompts = [row["prompt"].casefold() for row in records("train.jsonl") + records("val.jsonl")]
    assert [p for p, n in Counter(prompts).items() if n > 1] == []
