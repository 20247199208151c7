"""What a run tells: the table, the bar, the logged values, summary.json, the samples."""

import csv
import json
import re
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from peft_lightning import LoRA
from peft_lightning.data import encode_prompt
from peft_lightning.inference.stop_tokens import stop_token_ids
from peft_lightning.kernels.native.library import kernels_state
from peft_lightning.training.batch_size import count_tokens
from peft_lightning.training.schedules import Linear
from peft_lightning.training.summary import Summary
from peft_lightning.training.trained_table import trained_table
from tiny import tiny_model
from tiny_run import byte_tokenizer, fit, write_base


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, rows):
    root = tmp_path_factory.mktemp("report") / "run"
    options = {"sample_prompts": ["say 1", "say 2"], "sample_max_new_tokens": 4}
    logger = CSVLogger(root, name="logs")
    trainer = fit(
        base, rows, root, module=options, data={"val_fraction": 0.25}, logger=logger,
        log_every_n_steps=1, enable_progress_bar=True,
    )  # fmt: skip
    return trainer, root


def test_the_table_counts_what_is_trained_by_pattern():
    model = tiny_model("llama")
    LoRA(r=2, target_modules=["q_proj", "down_proj"]).attach(model)
    lines = trained_table(model).splitlines()
    numbers = {line.split()[0]: line.split()[1:3] for line in lines[1:-1]}
    queries, downs = 2 * 2 * (32 + 32), 2 * 2 * (48 + 32)
    assert numbers["model.layers.*.self_attn.q_proj"] == ["4", str(queries)]
    assert numbers["model.layers.*.mlp.down_proj"] == ["4", str(downs)]
    assert numbers["all"] == ["8", str(queries + downs)]
    share = (queries + downs) / sum(p.numel() for p in model.parameters())
    assert f"{share:.4%}" in lines[-2]
    assert f"{4 * (queries + downs):,}" in lines[-2]


def test_the_summary_holds_the_runs_real_numbers(run, rows):
    trainer, root = run
    summary = json.loads((root / "summary.json").read_text())
    model = trainer.lightning_module.model
    trained = [p for p in model.parameters() if p.requires_grad]
    assert summary["status"] == "finished"
    assert (summary["method"], summary["steps"], summary["epochs"]) == ("LORA", 10, 2)
    assert summary["trainable_parameters"] == sum(p.numel() for p in trained)
    assert summary["total_parameters"] == sum(p.numel() for p in model.parameters())
    sizes = trainer.datamodule.sizes["train"]
    assert sizes["rows"] == 18
    assert summary["tokens"] == 2 * sizes["tokens"]
    assert summary["tokens_per_second"] > 0
    assert summary["peak_memory_bytes"] > 50e6  # torch alone is more
    assert summary["seed"] == 0
    assert summary["data_hash"] == trainer.datamodule.data_hash
    assert summary["base_fingerprint"] == trainer.lightning_module.fingerprint
    assert summary["paths"]["norms"] == "LlamaRMSNorm fused (5)"
    assert summary["paths"]["on the CPU"] == kernels_state()
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["best_val_loss"] == pytest.approx(
        min(float(row["val/loss"]) for row in logged(root) if row["val/loss"])
    )


def logged(root):
    with (root / "logs" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_logged_rate_is_that_of_the_step_itself(base, rows, tmp_path):
    logger = CSVLogger(tmp_path, name="logs")
    schedule = Linear(warmup=2)
    trainer = fit(
        base, rows, tmp_path, module={"learning_rate": 0.01, "lr_schedule": schedule},
        logger=logger, log_every_n_steps=1, max_steps=4,
    )  # fmt: skip
    rates = [float(row["lr"]) for row in logged(tmp_path) if row["lr"]]
    assert rates == pytest.approx([0.01 * schedule.factor(step, 4) for step in range(4)])
    assert trainer.global_step == 4


def test_the_reason_of_an_early_stop_and_steps_without_validation_are_said(
    base, rows, tmp_path, caplog
):
    stopping = EarlyStopping("val/loss", stopping_threshold=1e3)
    options = {"data": {"val_fraction": 0.25}, "max_epochs": 3}
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        fit(base, rows, tmp_path / "stopped", callbacks=[stopping], **options)
        assert "stopped early, after step 5: Stopping threshold reached" in caplog.text
        assert "not validated" not in caplog.text
        fit(base, rows, tmp_path / "odd", val_check_interval=3, **{**options, "max_epochs": 1})
    assert "the last 2 steps were not validated, so best.ckpt may not be the best" in caplog.text


def test_every_step_and_validation_is_logged(run):
    _, root = run
    steps = [row for row in logged(root) if row["train/loss"]]
    assert len(steps) == 10
    for name in ("grad_norm", "tokens_per_second", "peak_memory_mib", "lr"):
        assert all(float(row[name]) >= 0 for row in steps)
    validations = [row for row in logged(root) if row["val/loss"]]
    assert len(validations) == 2
    for row in validations:
        loss = torch.tensor(float(row["val/loss"]))
        assert float(row["val/perplexity"]) == pytest.approx(loss.exp().item(), rel=1e-5)
        assert 0 <= float(row["val/token_accuracy"]) <= 1


def test_token_accuracy_is_the_share_of_tokens_that_were_likeliest(run):
    trainer, _ = run
    module, hits, total = trainer.lightning_module, 0, 0
    module.eval()
    with torch.no_grad():
        for batch in trainer.datamodule.val_dataloader():
            logits, targets = module.labelled_logits(batch)
            hits += (logits.argmax(-1) == targets).sum().item()
            total += len(targets)
    assert trainer.callback_metrics["val/token_accuracy"].item() == pytest.approx(hits / total)


def test_samples_are_written_before_training_and_at_each_validation(run):
    trainer, root = run
    rows = [json.loads(line) for line in (root / "samples.jsonl").read_text().splitlines()]
    assert [(r["step"], r["prompt"]) for r in rows] == [
        (step, prompt) for step in (0, 5, 10) for prompt in ("say 1", "say 2")
    ]
    answers = trainer.lightning_module.generate(["say 1", "say 2"], 4)
    assert [r["prediction"] for r in rows[4:]] == answers
    assert all(len(byte_tokenizer()(a)["input_ids"]) <= 4 for a in answers)


def test_a_trial_run_shows_samples_and_writes_nothing(base, rows, tmp_path, capsys):
    options = {"sample_prompts": ["say 1"], "sample_max_new_tokens": 2}
    fit(
        base, rows, tmp_path / "run", module=options, data={"val_fraction": 0.25},
        fast_dev_run=True,
    )  # fmt: skip
    assert "step 1  'say 1' -> " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_count_tokens_leave_out_padding():
    ids = torch.zeros(2, 5)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert count_tokens({"input_ids": ids, "attention_mask": mask}) == 7
    assert count_tokens({"input_ids": ids}) == 10


def test_sample_answers_use_the_template_that_the_data_were_written_in(base, rows, tmp_path):
    plain = tmp_path / "base"
    shutil.copytree(base, plain)
    tokenizer = byte_tokenizer()
    template, tokenizer.chat_template = tokenizer.chat_template, None
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(plain)
    trainer = fit(plain, rows, tmp_path / "run", data={"chat_template": template}, max_steps=1)
    module = trainer.lightning_module
    text = module.tokenizer.decode(encode_prompt(module.tokenizer, "hello"))
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    end = module.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in stop_token_ids(module.model, module.tokenizer)


def test_the_start_says_how_each_part_is_computed(base, rows, tmp_path, capsys):
    adapter = LoRA(r=2, layers_to_transform=1)
    callbacks = [Summary(verbose=True)]
    fit(base, rows, tmp_path / "run", adapter=adapter, max_steps=1, callbacks=callbacks)
    said = capsys.readouterr().out.splitlines()
    ends = {line.split()[0]: line.split()[-1] for line in said if line}
    assert ends["model.layers.*.self_attn.q_proj"] == "grouped"
    assert ends["model.layers.*.mlp.down_proj"] == "fused"
    assert "norms           LlamaRMSNorm fused (5)" in said
    assert "gated MLPs      LlamaMLP fused (2)" in said
    assert "rotary          LlamaAttention fused (2)" in said
    assert "attention       each sequence alone, on cpu" in said
    assert f"on the CPU      {kernels_state()}" in said
    assert "loss            labelled tokens, in chunks" in said
    assert "layers below 1  no graph, nothing kept" in said


def test_the_start_says_only_what_a_user_may_act_on(base, rows, tmp_path, capsys):
    fit(base, rows, tmp_path / "run", max_steps=1)
    said = capsys.readouterr().out
    assert "precision" in said
    assert "threads" in said
    assert not re.search("fused|grouped|in chunks|each sequence alone|norms|rotary", said)


def test_the_start_says_what_runs_as_transformers_has_it(tmp_path, rows, capsys):
    base = write_base(tmp_path / "base", "gemma3")
    adapter = LoRA(r=2, target_modules=["q_proj"])
    module = {"attn_implementation": "eager"}
    data = {"layout": "padded"}
    fit(base, rows, tmp_path / "run", adapter=adapter, module=module, data=data, max_steps=1)
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "norms Gemma3RMSNorm as it is (13)" in said
    assert "attention eager, of transformers" in said
    assert not [line for line in said if line.startswith("layers below")]
