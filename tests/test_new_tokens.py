"""New tokens through the real command line: train, resume, answer, on the plain base each time."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from cli_driver import drive
from tiny_run import byte_tokenizer

SIZE = len(byte_tokenizer())


@pytest.fixture(scope="module")
def done(base, rows, tmp_path_factory):
    """Train whole, and in two parts; then use what came out."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "tokens.txt").write_text("ok\n<unused>\n")
    fit = [
        *("fit", "--model.base_model", str(base), "--data.train", str(rows), "--data.cache_dir"),
        *("tokens", "--trainer.accelerator", "cpu", "--trainer.logger", "false"),
        *("--model.lr_schedule", "Constant", "--model.learning_rate", "0.01"),
        *("--model.adapter", "LoRA", "--model.adapter.r", "2", "--model.adapter.new_tokens"),
    ]
    root, steps = "--trainer.default_root_dir", "--trainer.max_steps"
    both, ckpt = '["ok", "say "]', "part/checkpoints/last.ckpt"
    part, short = ("--config", "part/config.yaml", "--ckpt_path", "last"), ("--max_new_tokens", "4")
    lines = {
        "whole": [*fit, both, steps, "6", root, "whole"],
        "part": [*fit, both, steps, "3", root, "part"],
        "resumed": ["fit", *part, steps, "6"],
        "others": ["fit", *part, "--model.adapter.new_tokens", '["ok", "sag "]', steps, "7"],
        "file": [*fit, "tokens.txt", steps, "1", root, "file"],
        "validate": ["validate", *part],
        "predict": ["predict", *part, "--data.predict", str(rows)],
        "generate": ["generate", "--ckpt_path", ckpt, "--prompt", "say ok", *short],
        "several": ["generate", "--adapter", f"a={ckpt}", "--prompt", "say ok", *short],
        "inspect": ["inspect", ckpt],
        "merge": ["merge", ckpt, "merged"],
        "of the merged": ["generate", "--base_model", "merged", "--prompt", "say ok", *short],
        "export": ["export", ckpt, "merged.gguf", "--type", "model"],
        "export lora": ["export", ckpt, "lora.gguf"],
        "bank": ["predict", *part[:2], "--ckpt_path", "null", "--adapter", f"a={ckpt}"],
    }
    lines["alone"] = [*lines["bank"], "--data.predict", str(rows)]
    lines["alone"] += ["--model.predict_max_new_tokens", "4", "--overwrite"]
    lines["bank"] += ["--adapter", "b=file/checkpoints/last.ckpt"]
    lines["several"] += ["--adapter", "b=file/checkpoints/last.ckpt"]
    lines["bank"] += ["--data.predict", str(rows)]
    lines["predict"] += ["--model.predict_max_new_tokens", "4"]
    results = dict(zip(lines, drive(folder, list(lines.values())), strict=True))
    return folder, results


def test_every_command_takes_the_plain_base(done):
    _, results = done
    failed = {
        n: r for n, r in results.items() if r[0] != 0 and n not in ("others", "bank", "export lora")
    }
    assert not failed
    assert "[a] " in results["several"][1]
    assert "[b] " in results["several"][1]


def test_a_resumed_run_computes_every_bit_of_the_undisturbed_one(done):
    folder, _ = done
    whole, resumed = (
        load_file(folder / name / "checkpoints/last.ckpt/adapter_model.safetensors")
        for name in ("whole", "part")
    )
    assert any("trainable_tokens_delta" in name for name in whole)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_merged_model_has_the_vocabulary_and_answers_alike(done):
    folder, results = done
    assert AutoConfig.from_pretrained(folder / "merged").vocab_size == SIZE + 2
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    assert tokenizer("say ok")["input_ids"] == [SIZE + 1, SIZE]
    assert results["of the merged"][1] == results["generate"][1]
    assert "logits differ by at most" in results["merge"][1]
    status, _, errors = results["export lora"]
    assert status == 2
    assert "a LoRA's GGUF file takes updates of linear layers only" in errors
    assert "merge it, python -m peft_lightning merge" in errors


def test_other_new_tokens_than_the_checkpoints_are_refused(done):
    status, _, errors = done[1]["others"]
    assert status == 2
    assert "the checkpoint was trained with another adapter (new_tokens: " in errors


def test_predict_with_adapters_of_different_tokenizers_names_generate(done):
    status, _, errors = done[1]["bank"]
    assert status == 2
    assert "a and b have different tokenizers, and predict reads all rows by one" in errors
    assert "use generate --file FILE --adapter a=" in errors


def test_predict_reads_rows_by_the_tokenizer_of_the_only_adapter(done):
    assert done[1]["alone"][0] == 0


def test_the_checkpoint_has_the_tokenizer_and_the_new_rows_and_nothing_of_the_base(done):
    folder, _ = done
    ckpt = folder / "part/checkpoints/last.ckpt"
    tokenizer = AutoTokenizer.from_pretrained(ckpt)
    assert tokenizer("say ok")["input_ids"] == [SIZE + 1, SIZE]
    facts = json.loads((ckpt / "peft_lightning.json").read_text())
    assert {text: known["id"] for text, known in facts["new_tokens"].items()} == {
        "ok": SIZE,
        "say ": SIZE + 1,
    }
    tensors = load_file(ckpt / "adapter_model.safetensors")
    assert max(len(t) for name, t in tensors.items() if "lora" not in name) == 2


def test_inspect_shows_the_layers_beside_the_new_rows(done):
    _, out, _ = done[1]["inspect"]
    assert "q_proj" in out
    assert "BASE WEIGHTS" not in out


def test_the_base_stays_known_by_its_fingerprint(done):
    folder, _ = done
    prints = [
        json.loads((folder / name / "checkpoints/last.ckpt/peft_lightning.json").read_text())
        for name in ("part", "file")
    ]
    assert prints[0]["base_fingerprint"] == prints[1]["base_fingerprint"]
    assert prints[0]["new_tokens"] != prints[1]["new_tokens"]
