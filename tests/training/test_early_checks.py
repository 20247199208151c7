"""What does not go with the base is said before rows are tokenized or weights are loaded."""

import json
import shutil

import pytest

from cli_driver import drive


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """A folder with a base whose weights are all there in name and shape, and damaged in value."""
    folder = tmp_path_factory.mktemp("early")
    shutil.copytree(base, folder / "base")
    shutil.copy(rows, folder / "rows.jsonl")
    shutil.copytree(base, folder / "cut")
    weights = (folder / "cut/model.safetensors").read_bytes()
    (folder / "cut/model.safetensors").write_bytes(weights[:-1000])
    shutil.copytree(base, folder / "misfit")
    config = json.loads((base / "config.json").read_text())
    (folder / "misfit/config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    (folder / "p.txt").write_text("hello\n")
    return folder


WRONG = [  # options of fit, and what its only line says
    (["--model.adapter.target_modules", "[q_prj]"], "target_modules ['q_prj'] match no linear"),
    (["--model.adapter.target_modules", "(q"], "nor a regular expression (missing )"),
    (["--model.adapter.r", "100000"], "r 100,000 is above both widths of model.layers.0"),
    (["--model.adapter.rank_pattern", '{"q_proj": 900}'], "rank_pattern: 900 is above both"),
    (["--model.adapter.layers_to_transform", "[77]"], "layers_to_transform [77] are not there"),
    (["--model.adapter", "PromptTuning", "--model.adapter.num_virtual_tokens", "5000"], "no room"),
    (["--model.dtype", "fp16"], "--model.dtype must be auto, float32, bfloat16 or float16"),
    (["--model.learning_rate", "0"], "--model.learning_rate must be above 0"),
    (["--trainer.devices", "99"], "--trainer.devices: 99 processes on "),
    (["--data.batch_size", "0"], "--data.batch_size must be at least 1"),
    (["--model.base_model", "cut"], "cut/model.safetensors cannot be read, it may be damaged"),
    (["--model.base_model", "misfit"], "the base model misfit has a model.layers"),
    (["--model.base_model", "bsae"], "it is no local folder, and no model hub can be reached"),
    (["--model.base_model", "./bsae"], "there is no ./bsae; did you mean base?"),
    (["--data.train", "rws.jsonl"], "rws.jsonl: no such file or folder; did you mean rows.jsonl?"),
]


def test_fit_refuses_it_before_a_row_is_read(user, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fit = ["fit", "--model.base_model", "base", "--data.train", "rows.jsonl"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run"]
    found = drive(user, [[*fit, *options] for options, _ in WRONG])
    for (options, said), (status, _, errors) in zip(WRONG, found, strict=True):
        assert status == 2, (options, errors)
        assert said in errors.splitlines()[-1], options
        assert "read =" not in errors, options  # the counts of the rows
    assert not (user / "run/checkpoints").exists()


def test_a_rank_between_the_widths_of_a_layer_is_trained(user):
    fit = ["fit", "--model.base_model", "base", "--data.train", "rows.jsonl"]
    fit += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "wide"]
    fit += ["--trainer.max_steps", "1", "--data.cache_dir", "cache", "--model.adapter.r", "20"]
    [(status, _, errors)] = drive(user, [fit])
    assert status == 0, errors  # the keys have 16 outputs, and 32 inputs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (["--top_p", "2"], "top_p must be above 0"),
        (["--batch_size", "0"], "batch_size must be at least 1"),
        (["--seed", str(10**30)], "seed must be a whole number of 64 bits"),
        (["--dtype", "fp16"], "dtype must be auto"),
        (["--device", "gpu"], "device must be auto, cpu or a GPU"),
        (["--quantization", "5bit"], "quantization must be 4bit or 8bit"),
        (["--truncation", "x"], "truncation must be error, drop or truncate"),
        (["--stop", ""], "a stop string is empty"),
        (["--output", "p.txt"], "p.txt would take the place of p.txt"),
        (["--output", "/proc/a"], "/proc/a cannot be written"),
    ],
)
def test_generate_refuses_an_option_before_it_loads_the_model(user, options, said):
    line = ["generate", "--base_model", "cut", "--file", "p.txt", *options]
    [(status, _, errors)] = drive(user, [line])
    assert status == 2, errors
    assert said in errors.splitlines()[-1]


def test_a_base_that_cannot_be_loaded_names_the_file_or_the_tensor(user):
    lines = [["generate", "--base_model", name, "--prompt", "a"] for name in ("cut", "misfit")]
    cut, misfit = drive(user, lines)
    assert (cut[0], misfit[0]) == (2, 2)
    assert "cut/model.safetensors cannot be read, it may be damaged" in cut[2].splitlines()[-1]
    assert "the base model misfit has a model.layers" in misfit[2].splitlines()[-1]
