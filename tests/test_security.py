"""Files from elsewhere run no code, name no file outside of their folder, and take no secret."""

import json
import os
import pickle
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cli_driver import ENVIRONMENT, drive
from peft_lightning import LoRA, PromptTuning, load_adapter, save_adapter
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.adapters.inspect import inspect_adapter
from peft_lightning.base_model import load_base_model, load_tokenizer
from peft_lightning.base_model.weights import open_weights
from peft_lightning.cli.model_card import model_card
from peft_lightning.commands.inspect import inspect
from peft_lightning.commands.push import push
from peft_lightning.data import encode_prompt
from peft_lightning.data.records import RowError
from peft_lightning.data.rows.formats import messages
from peft_lightning.data.tokenized_dataset import TokenizedDataset
from peft_lightning.data.tokens import templates
from peft_lightning.data.tokens.tokenization import RowTokenizer
from peft_lightning.data.tokens.tokenizer import load_tokenizer as load_other_tokenizer
from peft_lightning.files import SUMS_FILE
from peft_lightning.hub import adapter_folder
from peft_lightning.messages import redacted, without_secrets
from peft_lightning.training.checkpoint_io import AdapterCheckpointIO
from test_cli import DATA, MODEL
from tiny import tiny_model
from tiny_run import byte_tokenizer, fit


@pytest.fixture
def folder(tmp_path):
    """The folder of a LoRA as it comes from elsewhere: without checksums."""
    model = tiny_model("llama")
    adapter = LoRA(r=2)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "x")
    (tmp_path / "x" / SUMS_FILE).unlink()
    return tmp_path / "x"


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# the table


def test_every_row_of_the_table_names_a_test_that_is_there():
    page = Path(__file__).parents[1] / "docs/security.md"
    rows = [r for r in page.read_text("utf-8").splitlines() if r.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", row.split(" | ")[3])
        assert named, row
        for name, file in named:
            assert f"def {name}(" in (page.parent / file).read_text("utf-8"), row


# paths


@pytest.mark.parametrize("name", ["../outside", "/dev/zero", "a/../../outside", ".."])
def test_checksums_name_files_of_their_folder_only(name, folder):
    (folder.parent / "outside").write_text("")
    (folder / SUMS_FILE).write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match=r"SHA256SUMS names '.*', no file in it"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["../base/model.safetensors", "/base/model.safetensors", "x.bin"])
def test_a_bases_index_names_safetensors_files_of_its_folder_only(name, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    own = shutil.copytree(base, tmp_path / "own")
    (own / "model.safetensors").rename(own / "x.bin")
    name = name.replace("/base", f"{tmp_path}/base") if name[0] == "/" else name
    index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in (load_base_model, open_weights):
        with pytest.raises(ValueError, match=r"not in its folder|no .safetensors file"):
            read(str(own))


def test_an_adapter_from_elsewhere_cannot_have_a_file_of_this_machine_read(folder):
    (folder.parent / "secret").write_text("s3cret\n")
    change(folder / "peft_lightning.json", new_tokens=str(folder.parent / "secret"))
    with pytest.raises(ValueError, match="new_tokens must not name a file elsewhere"):
        read_adapter(folder)


@pytest.mark.parametrize("name", ["README.md", "adapter_model.safetensors", "LICENSE"])
def test_push_follows_no_link_out_of_the_folder(name, folder, capsys):
    (folder.parent / "secret").write_text("s3cret")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder.parent / "secret")
    with pytest.raises(ValueError, match=rf"{name} leads out of its folder, to \S*/secret"):
        push(str(folder), "a/b", base_model="a/base", dry_run=True)


def test_a_revision_of_the_hub_cannot_be_a_path_out_of_its_cache():
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        adapter_folder("owner/name@../../../../tmp")


# memory


def test_a_small_file_cannot_ask_for_much_memory(folder):
    change(folder / "adapter_config.json", r=10**9)
    with pytest.raises(ValueError, match=r"asks for rank 1000000000, and the file's .* at most 2"):
        load_adapter(tiny_model("llama"), folder)
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="1000000000000 virtual tokens, and the file's prompt_emb"):
        load_adapter(tiny_model("llama"), folder)


def test_an_option_of_another_type_is_named_with_the_right_one(folder):
    change(folder / "adapter_config.json", rank_pattern={"q_proj": "8"})
    with pytest.raises(
        ValueError, match=r"rank_pattern must be dict\[str, int\], got {'q_proj': '8'}"
    ):
        read_adapter(folder)


# code


class Payload:
    """What an attacker pickles: reading it makes the folder ``mark``."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def planted(file, mark):
    """Write a pickle of a payload, bare and as torch writes it, in turn."""
    file.write_bytes(pickle.dumps(Payload(mark)))
    yield
    torch.save({"a": Payload(mark)}, file)
    yield


def refused(read, *arguments):
    """Return the error of a reader; it must be one line that was foreseen."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(*arguments)
    return str(caught.value)


def test_the_payload_runs_where_pickle_loads_it(tmp_path):
    for kind in planted(tmp_path / "x", mark := tmp_path / "mark"):
        load = torch.load if zipfile.is_zipfile(tmp_path / "x") else None
        with suppress(FileExistsError):
            if load:
                load(tmp_path / "x", weights_only=False)
            else:
                pickle.loads((tmp_path / "x").read_bytes())
        assert mark.is_dir(), kind
        mark.rmdir()


ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "peft_lightning.json"]


@pytest.mark.parametrize("name", [*ADAPTER_FILES, "adapter_model.bin"])
def test_no_pickle_of_an_adapters_folder_is_loaded(name, folder, tmp_path):
    if name == "adapter_model.bin":
        (folder / "adapter_model.safetensors").unlink()
    for _ in planted(folder / name, mark := tmp_path / "mark"):
        refused(read_adapter, folder)
        refused(inspect_adapter, folder)
        refused(load_adapter, tiny_model("llama"), folder)
        assert not mark.exists()


def test_no_pickle_of_a_trainers_state_is_loaded(folder, tmp_path):
    for _ in planted(folder / "trainer_state.pt", mark := tmp_path / "mark"):
        assert "trainer_state.pt cannot be read" in refused(inspect, str(folder))
        message = refused(AdapterCheckpointIO().load_checkpoint, folder)
        assert "trainer_state.pt cannot be read" in message
        assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_no_pickle_of_a_base_is_loaded(name, base, tmp_path):
    own = shutil.copytree(base, tmp_path / "own")
    (own / "model.safetensors").unlink()
    for _ in planted(own / name, mark := tmp_path / "mark"):
        message = refused(load_base_model, str(own))
        assert "cannot load the base model" in message
        assert "\n" not in message
        assert not mark.exists()


def test_weights_of_a_base_in_a_bin_file_are_read_as_tensors_alone(base, tmp_path):
    own = shutil.copytree(base, tmp_path / "own")
    torch.save(load_file(own / "model.safetensors"), own / "pytorch_model.bin")
    (own / "model.safetensors").unlink()
    theirs, ours = load_base_model(str(base)), load_base_model(str(own))
    assert all(
        torch.equal(p, q) for p, q in zip(theirs.parameters(), ours.parameters(), strict=True)
    )


def test_no_pickle_of_a_cache_is_loaded(base, rows, tmp_path):
    fit(base, rows, tmp_path / "run", max_steps=1)
    [cache] = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    array = np.array([Payload(mark := tmp_path / "mark")], dtype=object)
    for file in sorted(cache.glob("*.npy")):
        whole = file.read_bytes()
        np.save(file, array, allow_pickle=True)
        refused(TokenizedDataset, cache)
        assert not mark.exists()
        file.write_bytes(whole)
    TokenizedDataset(cache)


def test_code_that_a_model_brings_is_not_run(base, tmp_path):
    own, mark = shutil.copytree(base, tmp_path / "own"), tmp_path / "mark"
    (own / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    maps = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change(own / "config.json", auto_map=maps, model_type="evil")
    change(own / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    change(own / "tokenizer_config.json", tokenizer_class="Evil")
    assert "set trust_remote_code to true" in refused(load_base_model, str(own))
    assert "set trust_remote_code to true" in refused(open_weights, str(own))
    assert "set trust_remote_code to true" in refused(load_tokenizer, str(own))
    assert "code of its own, which is not run" in refused(load_other_tokenizer, str(own))
    model = tiny_model("llama")
    for options in ({}, {"trust_remote_code": True}):
        text = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}
        prompt = PromptTuning(**text, tokenizer_name_or_path=str(own), tokenizer_kwargs=options)
        assert "trust_remote_code" in refused(prompt.attach, model)
    assert not mark.exists()


HOSTILE = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['os'].mkdir('MARK') }}",
    "init": "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
    "modules": "{% import 'os' as os %}{{ os.mkdir('MARK') }}",
    "changes": "{{ messages.append('x') }}",
    "range": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "division": "{{ 1 // 0 }}",
    "much": "{% for i in range(100) %}{{ 'x' * 200000 }}{% endfor %}",
    "product": "{{ 'x' * 10 ** 10 }}",
    "list": "{% set x = [1] * 10 ** 10 %}",
    "power": "{{ 10 ** 10 ** 10 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_chat_template_is_a_clear_error(name, tmp_path):
    template = HOSTILE[name].replace("MARK", str(mark := tmp_path / "mark"))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    [reason] = RowTokenizer(byte_tokenizer(), template).tokenize([messages({"messages": turns})])
    assert isinstance(reason, RowError)
    assert "the chat template" in str(reason)
    if name != "much":
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        assert "the chat template refuses" in refused(encode_prompt, tokenizer, "a")
    assert not mark.exists()


def test_a_config_builds_no_class_of_another_kind_and_no_tag(base, rows, tmp_path):
    mark = tmp_path / "mark"
    (tmp_path / "trap.py").write_text(
        f"class Trap:\n    def __init__(self, *args, **kwargs):\n        open({str(mark)!r}, 'w')\n"
    )
    (tmp_path / "tag.yaml").write_text(f"model: !!python/object/apply:os.mkdir [{mark}]\n")
    fit = ["fit", "--model.base_model", str(base), "--data.train", str(rows)]
    fit += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", "run"]
    lines = [["fit", "--config", "tag.yaml"]]
    for option in ("model.adapter", "model.optimizer", "trainer.callbacks", "trainer.logger"):
        lines += [[*fit, f"--{option}", name] for name in ("trap.Trap", "subprocess.Popen")]
    for line, (status, _, errors) in zip(lines, drive(tmp_path, lines), strict=True):
        assert status == 2, (line, errors)
        assert errors.splitlines()[-1].startswith("error: "), line
    assert not mark.exists()


def test_a_chat_template_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(templates, "LIMIT_SECONDS", 0.5)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match=r"takes more than 0\.5 s for one conversation"):
        RowTokenizer(byte_tokenizer(), loops)


def test_a_file_of_options_that_is_too_large_is_not_read(folder):
    for name in ("adapter_config.json", "peft_lightning.json"):
        before = (folder / name).read_bytes()
        with (folder / name).open("wb") as file:
            file.truncate(2**36)  # bytes, none of them on the disk
        (folder / "SHA256SUMS").unlink(missing_ok=True)
        assert "bytes, and such a file at most" in refused(read_adapter, folder)
        (folder / name).write_bytes(before)


# secrets

TOKEN, KEY, PASSWORD = "hf_" + "p1anted" * 5, "0123456789p1anted0123456789", "p1antedpassword"
LOGGER = """
from lightning.pytorch.loggers import CSVLogger


class Hosted(CSVLogger):
    def __init__(self, save_dir: str = "logs", api_key: str | None = None, url: str = ""):
        super().__init__(save_dir)
"""


def test_no_secret_reaches_a_file_of_a_run_or_what_is_printed(base, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "HF_TOKEN", TOKEN)
    monkeypatch.setitem(ENVIRONMENT, "WANDB_API_KEY", KEY)
    (tmp_path / "hosted.py").write_text(LOGGER)
    shutil.copy(rows, tmp_path / "rows.jsonl")
    model = MODEL.replace("BASE", str(base)) + ", adapter: {class_path: LoRA, init_args: {r: 2}}}"
    options = f"{{api_key: {KEY}, url: 'https://me:{PASSWORD}@host/x'}}"
    trainer = f"max_steps: 2, logger: {{class_path: hosted.Hosted, init_args: {options}}}"
    (tmp_path / "run.yaml").write_text(model + DATA.replace("TRAINER", trainer))
    last = "runs/run/checkpoints/last.ckpt"
    again = ["--config", "run.yaml", "--overwrite"]
    lines = [
        ["fit", "--config", "run.yaml"],
        ["card", last],
        ["inspect", last],
        ["fit", *again, "--trainer.logger.init_args.api_key", f"[{KEY}]"],
        ["fit", *again, "--data.train", f"https://me:{PASSWORD}@host/{TOKEN}.jsonl"],
        ["inspect", TOKEN],
        ["fit", "--config", "runs/run/config.yaml", "--overwrite", "--trainer.max_steps", "1"],
    ]
    results = drive(tmp_path, lines)
    assert [status for status, *_ in results] == [0, 0, 0, 2, 2, 2, 0], results
    assert "config.yaml is without secrets: trainer.logger.init_args.api_key" in results[0][2]
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"config.yaml", "summary.json", "README.md"} <= {path.name for path in files}
    for path in files:
        assert b"p1anted" not in path.read_bytes(), path
    for line, result in zip(lines, results, strict=True):
        assert "p1anted" not in "".join(map(str, result)), line


def test_secrets_are_known_by_name_form_and_environment(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("HOME_FOLDER", "/home/me-and-you")
    removed: list[str] = []
    config = {
        "a": {"hub_token": "x", "password": "x", "url": f"https://{TOKEN}@h/", "lr": 0.1},
        "b": [{"client_secret": "x", "eos_token": "</s>", "sort_key": "n"}, KEY],
        "api_key": None,
    }
    assert without_secrets(config, removed) == {
        "a": {"lr": 0.1},
        "b": [{"eos_token": "</s>", "sort_key": "n"}, "***"],
        "api_key": None,
    }
    assert removed == ["a.hub_token", "a.password", "a.url", "b[0].client_secret"]
    assert redacted(f"GET https://u:p@h/?x={TOKEN} {KEY} /home/me-and-you") == (
        "GET https://***@h/?x=*** *** /home/me-and-you"
    )


def test_a_token_cannot_get_into_an_adapters_options():
    with pytest.raises(ValueError, match="must hold no token, which the adapter's files would"):
        PromptTuning(
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text="a",
            tokenizer_kwargs={"token": TOKEN},
        )


def test_a_card_takes_no_secret_from_what_an_adapter_says(folder):
    change(folder / "peft_lightning.json", made_of={"api_key": KEY, "from": f"https://{TOKEN}@h"})
    change(folder / "adapter_config.json", base_model_name_or_path=f"https://me:{PASSWORD}@h/x")
    change(folder / "peft_lightning.json", base_model=None)
    assert "p1anted" not in model_card(folder, None, None, None)
