"""Regular expressions over layers' names: what is none is named, what never ends is given up."""

import json
import shutil
import signal
import time

import pytest

from cli_driver import drive
from peft_lightning import LoRA
from peft_lightning.adapters.lora.expressions import fullmatch, within_time
from tiny import tiny_model

ENDLESS = r"((\w+\.?)+)+!"


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"target_modules": "(a"}, "target_modules"),
        ({"exclude_modules": "[a"}, "exclude_modules"),
        ({"rank_pattern": {"(a": 2}}, "rank_pattern key"),
        ({"alpha_pattern": {"a{2,1}": 2}}, "alpha_pattern key"),
        ({"target_modules": ["q"], "layers_to_transform": 1, "layers_pattern": "*"}, "layers_pa"),
    ],
)
def test_what_is_no_expression_is_named_with_its_option(options, option):
    with pytest.raises(ValueError, match=rf"^{option}.* regular expression \("):
        LoRA(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ENDLESS},
        {"exclude_modules": ENDLESS},
        {"rank_pattern": {ENDLESS: 2}},
        {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": ENDLESS},
    ],
)
def test_an_expression_that_never_ends_is_given_up(options):
    start = time.monotonic()
    with pytest.raises(ValueError, match="takes more than 1 s for the name"):
        LoRA(**options).attach(tiny_model("llama"))
    assert time.monotonic() - start < 30


def test_an_expression_finds_what_re_finds_and_leaves_the_alarm_as_it_was():
    assert fullmatch(r"model\.layers\.\d+\.q", "model.layers.3.q")
    assert not fullmatch("layers", "layers.3")
    assert within_time("layers", "layers.3")[0] == "layers"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_a_strangers_adapter_with_such_an_expression_is_refused_by_each_command(
    tmp_path, base, rows
):
    shutil.copytree(base, tmp_path / "base")
    shutil.copy(rows, tmp_path / "rows.jsonl")
    fit = ["fit", "--model.base_model", "base", "--data.train", "rows.jsonl"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
    fit += ["--trainer.default_root_dir", "run", "--data.cache_dir", "cache"]
    [(status, _, errors)] = drive(tmp_path, [fit])
    assert status == 0, errors
    stranger = shutil.copytree(tmp_path / "run/checkpoints/best.ckpt", tmp_path / "stranger")
    (stranger / "SHA256SUMS").unlink()
    config = json.loads((stranger / "adapter_config.json").read_text())
    config["target_modules"] = ENDLESS
    (stranger / "adapter_config.json").write_text(json.dumps(config))
    lines = [
        ["generate", "--ckpt_path", "stranger", "--prompt", "a", "--max_new_tokens", "1"],
        ["merge", "stranger", "merged"],
        ["export", "stranger", "a.gguf"],
        [*fit, "--overwrite", "--model.init_from", "stranger"],
        [*fit, "--overwrite", "--model.adapter.target_modules", ENDLESS],
    ]
    for line, (status, _, errors) in zip(lines, drive(tmp_path, lines), strict=True):
        assert status == 2, (line, errors)
        assert "takes more than 1 s for the name" in errors.splitlines()[-1], line
