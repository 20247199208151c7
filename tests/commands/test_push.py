"""Model cards, and what is sent to a hub: a stand-in takes the place of the hub's client alone."""

import json
import shutil
from types import SimpleNamespace

import pytest
import yaml

from peft_lightning import hub
from peft_lightning.adapters import IA3, Full, LoRA, PromptTuning, read_adapter, save_adapter
from peft_lightning.base_model import load_base_model
from peft_lightning.cli.config_excerpt import public_values
from peft_lightning.cli.model_card import model_card
from peft_lightning.commands.card import card
from peft_lightning.commands.generate import generate
from peft_lightning.commands.inspect import inspect
from peft_lightning.commands.merge import merge
from peft_lightning.commands.push import push
from tiny import tiny_model
from tiny_run import CHECKPOINT_FILES, byte_tokenizer, fit

ID = "owner/tiny-llama"


class StandIn:
    """Has the part of HfApi that is called, with its names; remembers calls and files."""

    calls: list = []  # noqa: RUF012
    public = False

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create_repo", repo_id, private, exist_ok))

    def repo_info(self, repo_id):
        return SimpleNamespace(private=not self.public)

    def create_branch(self, repo_id, *, branch, exist_ok):
        self.calls.append(("create_branch", repo_id, branch, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
        self.files = {p.name: p.read_bytes() for p in folder_path.iterdir()}
        self.calls.append(("upload_folder", repo_id, revision, commit_message, self.files))
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def calls(monkeypatch):
    StandIn.calls, StandIn.public = [], False
    monkeypatch.setattr(hub, "HfApi", StandIn)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_" + "x" * 30)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    return StandIn.calls


@pytest.fixture(scope="module")
def run(base, rows, tmp_path_factory):
    """A finished run with its config beside it, as the command line writes it."""
    root = tmp_path_factory.mktemp("home") / "parrot"
    fit(base, rows, root, max_steps=3)
    logger = {"class_path": "W", "init_args": {"api_key": "s3cret", "name": "x"}}
    config = {
        "model": {"base_model": str(base), "revision": None, "hub_token": "s3cret"},
        "data": {"train": f"{root}/rows.jsonl", "tokens_per_batch": 64},
        "trainer": {"logger": logger, "default_root_dir": str(root)},
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


def front_of(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_has_hf_pefts_front_matter_and_the_runs_own_numbers(run, base, capsys):
    best = run / "checkpoints" / "best.ckpt"
    card(str(best), base_model=ID, license="mit")
    front, body = front_of((best / "README.md").read_text())
    (best / "README.md").unlink()
    assert front == {
        "base_model": ID,
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": [f"base_model:adapter:{ID}", "lora", "transformers"],
    }
    summary = json.loads((run / "summary.json").read_text())
    assert f"| validation loss | {summary['best_val_loss']:.4f} nats a token |" in body
    assert f"| tokens | {summary['tokens']:,} |" in body
    assert "# parrot" in body
    assert f'AutoModelForCausalLM.from_pretrained("{ID}")' in body
    assert "tokens_per_batch: 64" in body
    for hidden in ("s3cret", str(run.parent), str(base)):
        assert hidden not in body


def test_the_card_leaves_out_what_is_at_its_default(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    adapter = {"r": 4, "lora_alpha": 16, "use_rslora": False, "rank_pattern": {}}
    config["model"] |= {
        "adapter": {"class_path": "peft_lightning.LoRA", "init_args": adapter},
        "lr_schedule": {"class_path": "my.Own", "init_args": {"final": 0.0}},
        "sample_max_new_tokens": 64,
        "dtype": "bfloat16",
    }
    config["data"] |= {"layout": "flat", "max_length": 64}
    config["trainer"] |= {"inference_mode": True, "check_val_every_n_epoch": 1, "max_epochs": 3}
    copied = shutil.copytree(run, tmp_path / "run")
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    card(str(copied / "checkpoints" / "best.ckpt"))
    _, body = front_of((copied / "checkpoints" / "best.ckpt" / "README.md").read_text())
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert shown["model"] == {
        "base_model": shown["model"]["base_model"],
        "adapter": {"class_path": "peft_lightning.LoRA", "init_args": {"r": 4, "lora_alpha": 16}},
        "lr_schedule": {"class_path": "my.Own", "init_args": {"final": 0.0}},
        "dtype": "bfloat16",
    }
    assert shown["data"] == {"train": "rows.jsonl", "tokens_per_batch": 64, "max_length": 64}
    assert shown["trainer"] == {"default_root_dir": "parrot", "max_epochs": 3}


def code_of(body):
    return body.partition("```python\n")[2].partition("```")[0]


def run_code(body):
    space = {}
    exec(code_of(body).replace("max_new_tokens=100", "max_new_tokens=4"), space)
    return space


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_the_code_of_the_card_runs(system, run, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where names of the hub are folders
    shutil.copytree(base, ID)
    ckpt = shutil.copytree(run / "checkpoints" / "best.ckpt", tmp_path / "me" / "parrot")
    facts = json.loads((ckpt / "peft_lightning.json").read_text())
    facts["prompts"] = {"system_prompt": system} if system else {}
    (ckpt / "peft_lightning.json").write_text(json.dumps(facts))
    space = run_code(front_of(model_card(ckpt, ID, None, "me/parrot"))[1])
    assert capsys.readouterr().out.endswith("\n")
    assert type(space["model"]).__name__ == "PeftModelForCausalLM"
    start = "<|im_start|>system\nBe kind." if system else "<|im_start|>user\nHello<|im_end|>"
    assert space["prompt"].startswith(start)


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(r=2, use_dora=True),
        LoRA(r=2, new_tokens=["<call>"]),
        LoRA(r=2, modules_to_save=["lm_head"]),
        LoRA(r=2, init_lora_weights="pissa"),
        PromptTuning(num_virtual_tokens=3),
        IA3(),
        Full(),
    ],
    ids=lambda adapter: str(adapter)[:40],
)
def test_the_code_of_the_card_runs_for_every_kind_of_adapter(adapter, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, ID)
    model, tokenizer = load_base_model(ID, frozen=False), byte_tokenizer()
    adapter = adapter.with_tokenizer(tokenizer)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "me" / "it", {"base_model": ID}, tokenizer)
    space = run_code(front_of(model_card(tmp_path / "me" / "it", ID, None, "me/it"))[1])
    assert space["prompt"].startswith("<|im_start|>user\nHello")


def test_the_card_has_rank_alpha_targets_and_data_also_at_their_defaults(run):
    _, body = front_of(model_card(run / "checkpoints" / "best.ckpt", ID, None, None))
    for row in ("rank | 2", "alpha | 32", "targets | all-linear", "train data | rows.jsonl"):
        assert f"| {row} |" in body


def test_an_adapter_without_its_run_has_its_options_in_the_card_too(tmp_path):
    model, adapter = tiny_model("llama"), LoRA(r=8, lora_alpha=8, target_modules=["q_proj"])
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "a")
    _, body = front_of(model_card(tmp_path / "a", ID, None, None))
    for row in ("rank | 8", "alpha | 8", "targets | q_proj"):  # two of them HF PEFT's defaults
        assert f"| {row} |" in body


def test_the_license_of_a_local_base_is_that_of_its_card(run, base, tmp_path):
    copied = shutil.copytree(base, tmp_path / "base")
    (copied / "README.md").write_text("---\nlicense: apache-2.0\n---\nA model\n")
    ckpt = shutil.copytree(run / "checkpoints" / "best.ckpt", tmp_path / "c")
    facts = json.loads((ckpt / "peft_lightning.json").read_text())
    (ckpt / "peft_lightning.json").write_text(json.dumps({**facts, "base_model": str(copied)}))
    front, body = front_of(model_card(ckpt, ID, None, None))
    assert front["license"] == "apache-2.0"
    assert "| license of the base | apache-2.0 |" in body
    assert front_of(model_card(ckpt, ID, "mit", None))[0]["license"] == "mit"


def test_a_merged_model_is_pushed_with_a_card_of_what_was_merged(run, calls, tmp_path, monkeypatch):
    merge(str(run / "checkpoints" / "best.ckpt"), str(tmp_path / "me" / "merged"))
    push(str(tmp_path / "me" / "merged"), "me/merged", base_model=ID)
    files = calls[-1][-1]
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert wanted | {"README.md", "SHA256SUMS"} <= files.keys()
    assert "merged_from.json" not in files
    front, body = front_of(files["README.md"].decode())
    assert front["library_name"] == "transformers"
    assert front["tags"] == [f"base_model:finetune:{ID}", "transformers"]
    assert f"{ID} with a LoRA adapter merged into it." in body
    assert "| rank | 2 |" in body
    assert "| validation loss |" in body
    for private in (tmp_path, run.parent):
        assert all(str(private).encode() not in content for content in files.values())
    monkeypatch.chdir(tmp_path)
    run_code(body)


def test_a_model_that_is_marked_as_unverified_is_not_pushed(base, tmp_path, calls):
    copied = shutil.copytree(base, tmp_path / "merged")
    (copied / "UNVERIFIED").write_text("its logits differ\nmore\n")
    with pytest.raises(ValueError, match="is not to be used: its logits differ; merge"):
        push(str(copied), "me/merged", base_model=ID)
    assert not calls


def test_the_front_matter_is_what_hf_peft_writes(tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    configs = [
        (LoraConfig(task_type="CAUSAL_LM"), LoRA(r=2)),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), PromptTuning()),
    ]
    for config, adapter in configs:
        model = tiny_model("llama")
        model.name_or_path = model.config._name_or_path = ID
        get_peft_model(model, config).save_pretrained(tmp_path / "theirs")
        model = tiny_model("llama")
        adapter.attach(model)
        save_adapter(adapter, model, tmp_path / "ours")
        card(str(tmp_path / "ours"), base_model=ID)
        theirs, ours = (
            front_of((tmp_path / who / "README.md").read_text())[0] for who in ("theirs", "ours")
        )
        assert ours == theirs


def test_only_the_adapters_own_files_go_to_the_hub_and_the_base_by_its_name(
    run, base, calls, tmp_path, capsys
):
    last = run / "checkpoints" / "last.ckpt"
    push(str(last), "me/parrot", base_model=ID, private=True, revision="v1", message="first")
    assert "pushed: https://hub/me/parrot/commit/1" in (out := capsys.readouterr().out)
    assert "not uploaded: trainer_state.pt" in out
    made, branch, (_, *uploaded, files) = calls
    assert made == ("create_repo", "me/parrot", True, True)
    assert branch == ("create_branch", "me/parrot", "v1", True)
    assert uploaded == ["me/parrot", "v1", "first"]
    own = CHECKPOINT_FILES - {"trainer_state.pt"}
    assert files.keys() == own | {"README.md"}
    for content in files.values():
        assert str(base).encode() not in content
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == ID
    assert files["adapter_model.safetensors"] == (last / "adapter_model.safetensors").read_bytes()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert read_adapter(tmp_path)[2]["base_model"] == ID  # the checksums are those of its files
    push(str(last), "me/parrot", base_model=ID, trainer_state=True)
    assert "trainer_state.pt" in calls[-1][-1]
    push(str(last), "me/parrot", base_model=ID, dry_run=True)
    assert len(calls) == 5
    assert not (last / "README.md").exists()


def test_a_whole_model_is_pushed_with_its_config(base, rows, tmp_path, calls, monkeypatch):
    fit(base, rows, tmp_path / "run", adapter=Full(), max_steps=1)
    push(str(tmp_path / "run/checkpoints/last.ckpt"), "me/whole", base_model=ID)
    files = calls[-1][-1]
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert wanted <= files.keys()
    ends = json.loads(files["generation_config.json"])["eos_token_id"]
    assert ends == byte_tokenizer().eos_token_id  # for programs that know no chat template
    assert "trainer_state.pt" not in files
    front, _ = front_of(files["README.md"].decode())
    assert front["tags"] == [f"base_model:finetune:{ID}", "transformers"]
    assert all(str(tmp_path).encode() not in content for content in files.values())
    (tmp_path / "me" / "whole").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "me" / "whole" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    run_code(files["README.md"].decode())


def test_what_stops_a_push_is_one_line(run, calls, monkeypatch):
    last = str(run / "checkpoints" / "last.ckpt")
    with pytest.raises(ValueError, match=r"a local path, .* give its hub id with --base_model"):
        push(last, "me/parrot")
    with pytest.raises(ValueError, match="a repository is OWNER/NAME, got 'parrot'"):
        push(last, "parrot", base_model=ID)
    StandIn.public = True
    with pytest.raises(ValueError, match="is there already and is public"):
        push(last, "me/parrot", base_model=ID, private=True)
    assert [name for name, *_ in calls] == ["create_repo"]
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match="no model hub can be reached: nothing was uploaded"):
        push(last, "me/parrot", base_model=ID)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match=r"no token for the hub.* HF_TOKEN"):
        push(last, "me/parrot", base_model=ID)


def test_what_the_hub_refuses_is_told(run, calls, monkeypatch):
    from huggingface_hub.errors import HfHubHTTPError

    def refuse(self, repo_id, **options):
        response = SimpleNamespace(headers={}, request=None)
        raise HfHubHTTPError("403 Forbidden: no right to write\n", response=response)

    monkeypatch.setattr(StandIn, "create_repo", refuse)
    with pytest.raises(ValueError, match="cannot push to me/parrot: the hub says: 403 Forbidden"):
        push(str(run / "checkpoints" / "last.ckpt"), "me/parrot", base_model=ID)


def test_an_adapter_is_fetched_from_the_hub_at_its_revision(run, base, calls, monkeypatch, capsys):
    seen = []

    def snapshot_download(repo, **options):
        seen.append((repo, options["revision"], options["local_files_only"]))
        return str(run / "checkpoints" / "last.ckpt")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    generate(prompt="a", adapter=["p=me/parrot@v1"], base_model=str(base), max_new_tokens=2)
    inspect("me/parrot")
    assert seen == [("me/parrot", "v1", False), ("me/parrot", "main", False)]
    assert "LORA" in capsys.readouterr().out


def test_without_a_hub_a_name_is_no_folder(monkeypatch):
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(FileNotFoundError, match="no folder me/parrot@v1, and no model hub can be"):
        inspect("me/parrot@v1")
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere/at/all"):
        inspect("/nowhere/at/all")


def test_paths_are_cut_and_secrets_left_out():
    given = {
        "a": "~/models/x", "b": "owner/name", "c": "/data/rows.jsonl", "api_key": "1",
        "url": "https://u:p@host/x", "d": ["/x/y", None, 3], "note": "hf_" + "a" * 24,
    }  # fmt: skip
    kept = {"a": "x", "b": "owner/name", "c": "rows.jsonl", "d": ["y", None, 3]}
    assert public_values(given) == kept


def test_a_readme_may_be_changed_after_it_was_pushed(run, calls, tmp_path):
    last = run / "checkpoints" / "last.ckpt"
    push(str(last), "me/parrot", base_model=ID)
    for name, content in calls[-1][-1].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "README.md").write_text("my own words")
    push(str(tmp_path), "me/parrot", base_model=ID)
    assert calls[-1][-1]["README.md"] == b"my own words"


def test_a_folder_that_looks_like_a_hub_id_is_no_base_for_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("llama")
    model.save_pretrained("models/tiny")
    model.name_or_path = "models/tiny"
    (adapter := LoRA(r=2)).attach(model)
    save_adapter(adapter, model, tmp_path / "a")
    with pytest.raises(ValueError, match="base is a local path, models/tiny, which nobody else"):
        push("a", "me/parrot", dry_run=True)
