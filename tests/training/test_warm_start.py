"""A new run from trained weights: `fit --model.init_from`, as a user meets it."""

import json
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from cli_driver import ENVIRONMENT, drive
from peft_lightning import CausalLMModule, PromptTuning, PTuning
from rounding import assert_near
from tiny import tiny_model
from tiny_run import write_base, write_rows

RANK = 3
SLOW = "1e-6"  # AdamW's first step moves no weight by more than the learning rate
CONFIGS = {
    "lora": peft.LoraConfig(r=RANK, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "encoded": peft.PromptEncoderConfig(
        num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"
    ),
    "prefix": peft.PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, task_type="CAUSAL_LM"
    ),
}
FIT = ["fit", "--model.base_model", "base", "--data.train", "rows.jsonl", "--data.cache_dir"]
FIT += ["cache", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
FIT += ["--trainer.enable_progress_bar", "false", "--trainer.max_steps", "1"]
ERRORS = {
    "another adapter": (
        ["--model.adapter", "PromptTuning", "--model.init_from", "lora"],
        r"model.adapter is PromptTuning, and model.init_from lora holds LoRA: leave",
    ),
    "other options": (
        ["--model.adapter", "LoRA", "--model.adapter.r", "4", "--model.init_from", "lora"],
        r"another LoRA than that of model.init_from \S*lora: r 3 there, 4 here, .*leave model.ad",
    ),
    "the default, given": (
        ["--model.adapter", "LoRA", "--model.init_from", "prompt"],
        r"model.adapter is LoRA, and model.init_from prompt holds PromptTuning: leave",
    ),
    "another base": (
        ["--model.init_from", "run_lora/checkpoints/last.ckpt", "--model.base_model", "other"],
        r"last.ckpt was trained on another base model, base: .*Give that one as model.b",
    ),
    "no folder": (["--model.init_from", "lore"], r"model.init_from: there is no folder lore"),
    "a whole model": (
        ["--model.init_from", "whole"],
        r"model.init_from whole is a whole model: give it as model.base_model",
    ),
    "no hub": (
        ["--model.init_from", "me/mine@abc"],
        r"model.init_from: there is no folder me/mine@abc, and no model hub can be reached",
    ),
}


def write_adapters(folder):
    """Write an adapter of each kind as HF PEFT does, with random values."""
    for name, config in CONFIGS.items():
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(base, config)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(folder / name)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a user who began runs from each adapter, and what each command line said."""
    folder = tmp_path_factory.mktemp("user")
    write_base(folder / "base")
    write_base(folder / "other")
    other = tiny_model("llama", vocab_size=260, seed=1)
    other.save_pretrained(folder / "other")
    write_rows(folder / "rows.jsonl", 8)
    write_adapters(folder)
    (folder / "whole").mkdir()
    (folder / "whole" / "peft_lightning.json").write_text('{"peft_type": "FULL"}')
    other.save_pretrained(folder / "whole")
    lines = {}
    for name in CONFIGS:
        root = ["--trainer.default_root_dir", f"run_{name}"]
        lines[name] = [*FIT, "--model.init_from", name, "--model.learning_rate", SLOW, *root]
    resumed = ["--config", "run_prefix/config.yaml", "--ckpt_path"]
    resumed += ["run_prefix/checkpoints/last.ckpt", "--trainer.max_steps"]
    lines["resumed"] = ["fit", *resumed, "2", "--model.learning_rate", "0.01"]
    lines["resumed"] += ["--trainer.default_root_dir", "run_resumed"]
    ours = ["--model.init_from", "run_prompt/checkpoints/last.ckpt"]
    lines["ours"] = [*FIT, *ours, "--trainer.default_root_dir", "run_ours"]
    begun = ["--model.adapter", "LoRA", "--model.adapter.r", "2"]
    lines["begun"] = [*FIT, *begun, "--trainer.default_root_dir", "run_begun"]
    lines["again"] = ["fit", "--config", "run_begun/config.yaml", "--model.init_from"]
    lines["again"] += ["run_begun/checkpoints/last.ckpt", "--trainer.default_root_dir", "run_again"]
    lines["gone"] = ["fit", "--config", "run_lora/config.yaml", "--model.init_from", "gone"]
    lines["gone"] += ["--ckpt_path", "run_lora/checkpoints/last.ckpt", "--trainer.max_steps", "2"]
    lines["gone"] += ["--trainer.default_root_dir", "run_gone"]
    lines |= {name: [*FIT, *options] for name, (options, _) in ERRORS.items()}
    return folder, dict(zip(lines, drive(folder, list(lines.values())), strict=True))


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_starts_from_the_weights_of_a_folder(ran, name):
    folder, results = ran
    assert results[name][0] == 0, results[name][2]
    saved, start = (
        tensors(folder / f"run_{name}" / "checkpoints" / "last.ckpt"),
        tensors(folder / name),
    )
    assert saved.keys() == start.keys()
    assert_close(saved, start, rtol=0, atol=2 * float(SLOW))
    assert results[name][2].count("does not remember its base's fingerprint") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_the_saved_config_names_the_adapter_of_the_folder(ran, name):
    folder, _ = ran
    model = yaml.safe_load((folder / f"run_{name}" / "config.yaml").read_text())["model"]
    kind = {"lora": "LoRA", "prompt": "PromptTuning", "encoded": "PTuning"}
    assert model["adapter"]["class_path"].endswith(kind.get(name, "PrefixTuning"))
    theirs = json.loads((folder / name / "adapter_config.json").read_text())
    options = model["adapter"]["init_args"]
    own = {"trains_encoder": False} if "trains_encoder" in options else {}  # HF PEFT keeps none
    assert options == {key: theirs.get(key) for key in options} | own
    saved = folder / f"run_{name}" / "checkpoints" / "last.ckpt" / "adapter_config.json"
    ours = json.loads(saved.read_text())
    changed = {key for key in theirs if ours[key] != theirs[key]}
    assert changed <= {"base_model_name_or_path"}


def test_training_goes_on_from_there_and_such_a_run_resumes(ran):
    folder, results = ran
    for name, start in (("resumed", "prefix"), ("ours", "prompt")):
        assert results[name][0] == 0, results[name][2]
        moved = tensors(folder / f"run_{name}" / "checkpoints" / "last.ckpt")["prompt_embeddings"]
        step = (moved - tensors(folder / start)["prompt_embeddings"]).abs().max()
        assert 1e-4 < step <= 1.1e-2  # AdamW's first step is at most the learning rate
    assert "does not remember" not in results["ours"][2]


def test_a_run_resumes_where_the_folder_that_it_began_from_is_gone(ran):
    folder, results = ran
    status, _, said = results["gone"]
    assert status == 0, said
    last = "run_lora/checkpoints/last.ckpt"
    assert f"model.init_from: there is no folder gone; the adapter is that of {last}" in said
    before, after = (tensors(folder / f"run_{n}/checkpoints/last.ckpt") for n in ("lora", "gone"))
    moved = max((after[name] - before[name]).abs().max() for name in before)
    assert 0 < moved <= 2 * float(SLOW)
    saved = yaml.safe_load((folder / "run_gone" / "config.yaml").read_text())
    assert saved["model"]["init_from"] == "gone"  # what began the run, and not how it was resumed


def test_the_config_of_the_run_before_may_be_given_with_its_weights(ran):
    folder, results = ran
    assert results["begun"][0] == 0, results["begun"][2]
    assert results["again"][0] == 0, results["again"][2]
    options = yaml.safe_load((folder / "run_again" / "config.yaml").read_text())["model"]
    assert options["adapter"]["init_args"]["target_modules"] == "all-linear"


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_one_line_that_says_so(ran, name):
    import re

    _, results = ran
    status, _, errors = results[name]
    assert status == 2, errors
    assert re.search(r"^error: .*" + ERRORS[name][1], errors, re.MULTILINE), errors


def test_a_module_takes_the_adapter_of_the_folder_and_its_rate(ran):
    folder, _ = ran
    module = CausalLMModule(str(folder / "base"), init_from=str(folder / "encoded"))
    assert isinstance(module.adapter, PTuning)
    assert module.learning_rate == PTuning.learning_rate
    other = CausalLMModule(str(folder / "base"), PromptTuning(3), init_from=str(folder / "encoded"))
    with pytest.raises(ValueError, match=r"model.adapter is PromptTuning.* holds PTuning"):
        other.configure_model()
    checkpoint = folder / "run_encoded" / "checkpoints" / "last.ckpt"
    again = CausalLMModule.load_from_checkpoint(checkpoint, base_model=str(folder / "base"))
    assert torch.equal(again.model.prompt_embeddings, tensors(checkpoint)["prompt_embeddings"])


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does for one adapter at one commit."""

    commit = "a" * 40
    folder = None
    asked = None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2]
        body = b""
        if self.path.startswith("/api/models/me/mine/revision/"):
            body = json.dumps({"id": "me/mine", "sha": self.commit}).encode()
        elif self.path.startswith("/api/models/me/mine/tree/"):
            files = [(p.name, p.stat().st_size) for p in self.folder.iterdir()]
            entries = [{"type": "file", "path": p, "size": n, "oid": p} for p, n in files]
            body = json.dumps(entries).encode()
        elif "/resolve/" in self.path:
            body = (self.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_an_adapter_of_the_hub_is_fetched_at_its_revision(ran, tmp_path):
    folder, _ = ran
    hub = type("Mine", (Hub,), {"folder": folder / "lora", "asked": []})
    server = HTTPServer(("127.0.0.1", 0), hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "peft_lightning", *FIT]
    command += ["--model.init_from", f"me/mine@{Hub.commit}", "--model.learning_rate", SLOW]
    command += ["--trainer.default_root_dir", str(tmp_path / "run")]
    address = f"http://127.0.0.1:{server.server_port}"
    places = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **places, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    server.shutdown()
    assert done.returncode == 0, done.stderr
    saved = tensors(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert_close(saved, tensors(folder / "lora"), rtol=0, atol=2 * float(SLOW))
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}


def test_hf_pefts_folder_of_an_enlarged_model_is_continued_on_the_plain_base(tmp_path):
    place = write_base(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(place)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + 2)
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        trainable_token_indices=[size, size + 1],
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "theirs")
    module = CausalLMModule.load_from_checkpoint(tmp_path / "theirs", base_model=str(place))
    ids = torch.tensor([[5, size, size + 1, 9]])
    assert_near(module.model(ids).logits, theirs(ids).logits)
    rows = [n for n in module.state_dict() if n.endswith("trainable_tokens_delta")]
    assert rows
    assert all(module.state_dict()[name].shape == (2, 32) for name in rows)
    assert all(p.dtype == torch.float32 for p in module.trainable_parameters())
