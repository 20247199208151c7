"""An adapter of a user, examples/my_ia3.py: every command knows it, and it is as exact as ours."""

import ast
import json
import re
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from peft import IA3Config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import warm_python
from cli_driver import ENVIRONMENT, drive
from parity import IDS, hf_folder, hf_reads, our_folder
from peft_lightning import (
    Adapter,
    CausalLMModule,
    LoRA,
    PromptTuning,
    UserError,
    load_adapter,
    read_adapter,
    save_adapter,
)
from peft_lightning.adapters import lookup
from peft_lightning.adapters.base import is_ours
from peft_lightning.adapters.merge import merged, require_mergeable
from peft_lightning.commands.submit import submit
from peft_lightning.kernels.patch import patch_model
from processes import in_processes, outcome, resumed_and_whole, run
from tiny import tiny_model
from tiny_run import write_base, write_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_ia3.py"
SHORT = ["--max_new_tokens", "3"]
OF_OPT = {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]}
sys.path.append(str(EXAMPLE.parents[1]))

from examples.my_ia3 import IA3  # noqa: E402  (as a user's file is imported)


@pytest.fixture(scope="module")
def user(tmp_path_factory, base, rows):
    """The folder of a user who has trained an IA3 of a file in it."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(EXAMPLE, folder)
    config = {
        "model": {"base_model": str(base), "adapter": {"class_path": "my_ia3.IA3"}},
        "data": {"train": str(rows), "val": str(rows), "predict": str(rows), "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": "run"},
    }
    (folder / "ia3.yaml").write_text(yaml.safe_dump(config))
    ((status, _, errors),) = drive(folder, [["fit", "--config", "ia3.yaml"]])
    assert status == 0, errors
    return folder


CKPT = "run/checkpoints/last.ckpt"
READERS = {  # commands, and what each says of an IA3
    "generate": (["--ckpt_path", CKPT, "--prompt", "say", *SHORT], 0, ""),
    "merge": ([CKPT, "merged"], 0, "merged: merged, 1 x safetensors"),
    "inspect": ([CKPT], 0, "IA3"),
    "export": ([CKPT, "x.gguf"], 2, "a GGUF file takes LoRA only, and .* is a IA3 adapter"),
    "combine": (["out", f"{CKPT}=1", f"{CKPT}=1"], 2, "only LoRA .* combined, and this is IA3"),
    "resize": ([CKPT, "out", "--rank", "1"], 2, "only LoRA .* this is IA3"),
    "card": ([CKPT, "--overwrite"], 0, "README.md"),
    "push": ([CKPT, "me/x", "--base_model", "me/base", "--dry_run"], 0, "adapter_model"),
    "check-serving": ([CKPT], 0, "takes LoRA only, and this is IA3"),
    "validate": (["--config", "ia3.yaml", "--ckpt_path", CKPT], 0, "val/loss"),
    "predict": (["--config", "ia3.yaml", "--ckpt_path", CKPT], 0, "24 answers"),
    "fit": (
        ["--config", "ia3.yaml", "--model.init_from", CKPT, "--trainer.default_root_dir", "on"],
        0,
        "",
    ),
}


@pytest.mark.parametrize("command", READERS)
def test_every_command_knows_the_class_that_is_named(user, command):
    args, expected, said = READERS[command]
    ((status, out, errors),) = drive(user, [[command, *args, "--adapter_class", "my_ia3.IA3"]])
    assert status == expected, errors
    assert re.search(said, out + errors)


def test_chat_knows_the_class_that_is_named(user):
    args = ["-m", "peft_lightning", "chat", "--ckpt_path", CKPT, "--adapter_class=my_ia3.IA3"]
    done = warm_python.run([*args, *SHORT], cwd=user, env=ENVIRONMENT, input="say\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert CKPT in done.stderr


@pytest.mark.parametrize("command", ["generate", "merge", "export", "combine", "fit"])
def test_a_folder_never_imports_the_class_that_it_names_and_the_error_says_how_to(user, command):
    shutil.copytree(user / CKPT, user / "there", dirs_exist_ok=True)
    (user / "there" / "SHA256SUMS").unlink()
    facts = json.loads((user / "there/peft_lightning.json").read_text())
    assert facts["adapter_class"] == "my_ia3.IA3"
    (user / "trap.py").write_text("raise SystemExit(77)\n")
    facts["adapter_class"] = "trap.IA3"
    (user / "there/peft_lightning.json").write_text(json.dumps(facts))
    args = [a.replace(CKPT, "there") for a in READERS[command][0] if a != "ia3.yaml"]
    args = [a for a in args if a != "--config"]
    if command == "fit":
        args[args.index("on")] = "trapped"
        args += ["--model.base_model", facts["base_model"], "--data.train", "x.jsonl"]
    ((status, _, errors),) = drive(user, [[command, *args]])
    assert status == 2
    assert "if you trust its code, give --adapter_class trap.IA3" in errors
    assert "Traceback" not in errors


def test_inspect_card_and_push_need_no_class(user):
    lines = [[command, *READERS[command][0]] for command in ("inspect", "card", "push")]
    for status, out, errors in drive(user, lines):
        assert status == 0, errors
        assert "my_ia3.IA3" in out or "README" in out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--adapter_class", "nowhere.IA3"], "--adapter_class: .*no module 'nowhere'"),
        (["--adapter_class=my_ia3.IA4"], "--adapter_class: my_ia3 has no Adapter 'IA4'.*'IA3'"),
        (["--adapter_class=json.JSONDecoder"], "json.JSONDecoder is no Adapter"),
        (["--adapter_class"], "--adapter_class needs a dotted path"),
    ],
)
def test_a_wrong_class_is_named(user, given, said):
    ((status, _, errors),) = drive(user, [["generate", "--ckpt_path", CKPT, "--prompt=x", *given]])
    assert status == 2
    assert re.search(said, errors)


def test_submit_passes_the_class_on_to_the_job(user, monkeypatch, capsys):
    monkeypatch.chdir(user)
    monkeypatch.syspath_prepend(user)
    submit("--config", "ia3.yaml", "--adapter_class=my_ia3.IA3", dry_run=True, resume=True)
    assert "--adapter_class=my_ia3.IA3" in capsys.readouterr().out


@pytest.fixture
def registry(monkeypatch):
    """The known classes, as they were before the test afterwards."""
    monkeypatch.setattr(Adapter, "by_peft_type", dict(Adapter.by_peft_type))
    own = [kind for kind in Adapter.imported if is_ours(kind) or kind is IA3]  # no second copy
    monkeypatch.setattr(Adapter, "imported", own)


def test_a_module_that_has_moved_is_found_by_the_name_of_its_class(registry, tmp_path):
    our_folder(IA3(), tiny_model("llama"), tmp_path / "x")
    (tmp_path / "x/SHA256SUMS").unlink()
    facts = json.loads((tmp_path / "x/peft_lightning.json").read_text())
    (tmp_path / "x/peft_lightning.json").write_text(
        json.dumps(facts | {"adapter_class": "elsewhere.IA3"})
    )
    assert read_adapter(tmp_path / "x").adapter == IA3()


@pytest.mark.parametrize("path", ["os.system('x')", "IA3", "../x.IA3", 3, ["my_ia3.IA3"], "a.b\n"])
def test_what_is_no_dotted_path_is_refused(tmp_path, path):
    our_folder(IA3(), tiny_model("llama"), tmp_path / "x")
    (tmp_path / "x/SHA256SUMS").unlink()
    file = tmp_path / "x/peft_lightning.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"adapter_class": path}))
    with pytest.raises(UserError, match="adapter_class must be a dotted path"):
        read_adapter(tmp_path / "x")


# ---- which class is whose ---------------------------------------------------------------------


def test_a_class_of_a_user_takes_no_type_of_ours(registry, tmp_path):
    @dataclass(frozen=True)
    class Doubled(LoRA):
        peft_type: ClassVar[str] = "LORA"

    for adapter in (LoRA(r=2), Doubled(r=2)):
        our_folder(adapter, tiny_model("llama"), tmp_path / type(adapter).__name__)
        assert type(read_adapter(tmp_path / type(adapter).__name__).adapter) is type(adapter)
    Adapter.imported.remove(Doubled)
    with pytest.raises(UserError, match=r"was trained with \S*test_own_adapter\.Doubled, a class"):
        read_adapter(tmp_path / "Doubled")


def test_a_class_that_is_defined_again_is_the_newest(registry, tmp_path):
    def define(rate: float) -> type[Adapter]:
        @dataclass(frozen=True)
        class Again(IA3):
            peft_type: ClassVar[str] = "AGAIN"
            learning_rate: ClassVar[float] = rate

        return Again

    our_folder(define(1.0)(), tiny_model("llama"), tmp_path / "x")
    newest = define(2.0)
    assert type(read_adapter(tmp_path / "x").adapter) is newest


def test_an_installed_package_names_its_class_by_an_entry_point(registry, tmp_path, monkeypatch):
    our_folder(IA3(), tiny_model("llama"), tmp_path / "x")
    del Adapter.by_peft_type["IA3"]
    Adapter.imported.remove(IA3)
    there = {}

    def installed(*, group: str, name: str) -> list[EntryPoint]:
        assert group == "peft_lightning.adapters"
        return [there[name]] if name in there else []

    monkeypatch.setattr(lookup, "entry_points", installed)
    with pytest.raises(UserError, match=r"--adapter_class examples\.my_ia3\.IA3"):
        read_adapter(tmp_path / "x")
    there["IA3"] = EntryPoint("IA3", "examples.my_ia3:IA3", lookup.ENTRY_POINTS)
    monkeypatch.delitem(sys.modules, "examples.my_ia3")
    assert type(read_adapter(tmp_path / "x").adapter).__name__ == "IA3"
    there["IA4"] = EntryPoint("IA4", "nowhere:IA4", lookup.ENTRY_POINTS)
    with pytest.raises(UserError, match="nowhere:IA4 for IA4, and importing it fails: ModuleNot"):
        lookup.adapter_class("IA4")


def test_hf_pefts_folder_of_an_unknown_type_says_how_to_name_a_class(registry, tmp_path):
    config = IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    )
    peft = hf_folder(config, tiny_model("llama"), tmp_path)
    model = tiny_model("llama")
    load_adapter(model, tmp_path)
    torch.testing.assert_close(model(IDS).logits, peft(IDS).logits)
    del Adapter.by_peft_type["IA3"]
    with pytest.raises(UserError, match=r"'IA3' is not known here.*--adapter_class MODULE\.CLASS"):
        read_adapter(tmp_path)


# ---- the example itself -----------------------------------------------------------------------


def test_it_has_at_most_40_lines_of_code_and_imports_nothing_private():
    source = EXAMPLE.read_text()
    tree = ast.parse(source)
    docs: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docs |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    code = [line for i, line in enumerate(source.splitlines(), 1) if line.strip() and i not in docs]
    assert len(code) <= 40
    public = {"peft_lightning", "peft_lightning.adapters"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("peft_lightning"):
            assert node.module in public
            names = sys.modules[node.module].__all__
            assert {alias.name for alias in node.names} <= set(names)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt"])
def test_hf_peft_reads_the_folder_and_its_logits_are_ours(tmp_path, architecture):
    model = tiny_model(architecture)
    plain = model(IDS).logits
    adapter = IA3(**OF_OPT) if architecture == "opt" else IA3()
    adapter.attach(model)
    torch.testing.assert_close(model(IDS).logits, plain)  # vectors of 1
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, plain)
    folder = our_folder(adapter, model, tmp_path / "x")
    theirs = hf_reads(folder, architecture)
    assert (model(IDS).logits - plain).abs().max() > 0.1
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits)


def test_the_kernels_leave_it_what_it_is(tmp_path):
    folder = our_folder(IA3(), tiny_model("llama"), tmp_path / "x")
    model = tiny_model("llama")
    patch_model(model)
    load_adapter(model, folder)
    theirs = hf_reads(folder, "llama")
    torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt"])
def test_merged_the_plain_base_computes_the_same(architecture):
    model = tiny_model(architecture, torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = model(IDS).logits
    adapter: Any = IA3(**OF_OPT) if architecture == "opt" else IA3()
    adapter.attach(model)
    for tensor in adapter.state_dict(model).values():
        tensor.copy_(torch.rand_like(tensor) + 0.5)
    expected = model(IDS).logits
    with merged(model):
        assert model.state_dict().keys() == before.keys()
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(model(IDS).logits, expected)
    adapter.detach(model)
    assert torch.equal(model(IDS).logits, plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_merged_folder_is_what_the_adapter_computes(user, base):
    ((status, _, errors),) = drive(
        user, [["merge", CKPT, "whole", "--dtype", "float32", "--adapter_class=my_ia3.IA3"]]
    )
    assert status == 0, errors
    model = AutoModelForCausalLM.from_pretrained(base)
    plain = model(IDS).logits
    load_adapter(model, user / CKPT)
    theirs = AutoModelForCausalLM.from_pretrained(user / "whole")
    assert (model(IDS).logits - plain).abs().max() > 1e-3
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


class _Claims:
    """An IA3 whose ``merged_parameters`` are what a test says."""

    @staticmethod
    def of(found: Any) -> Adapter:
        @dataclass(frozen=True)
        class Claims(IA3):
            def merged_parameters(self, model):
                return found(model)

        return Claims()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            lambda m: {"x.weight": torch.ones(3)},
            r"cannot merge x.weight, \(3,\): the base has none",
        ),
        (
            lambda m: {"lm_head.weight": torch.ones(3)},
            r"cannot merge lm_head.weight, \(3,\): the base has one of shape \(128, 32\)",
        ),
        (
            lambda m: {"lm_head.weight": torch.full((128, 32), torch.inf)},
            "cannot merge into lm_head.weight: a value is not finite",
        ),
        (
            lambda m: {"model.embed_tokens.weight": torch.ones(128, 32)},
            "its weight is also that of lm_head.weight",
        ),
    ],
)
def test_a_wrong_merge_is_named_and_changes_nothing(registry, found, said):
    tied = "also" in said
    model = tiny_model("qwen2" if tied else "llama")
    adapter = _Claims.of(found)
    adapter.attach(model)
    expected = model(IDS).logits
    with pytest.raises(UserError, match=said), merged(model):
        pass
    assert torch.equal(model(IDS).logits, expected)
    adapter.detach(model)


def test_one_that_does_not_say_how_is_not_merged(registry):
    @dataclass(frozen=True)
    class Silent(Adapter):
        peft_type: ClassVar[str] = "SILENT"

        def _insert(self, model, initialise): ...
        def _remove(self, model): ...
        def tensors(self, model): ...

    with pytest.raises(UserError, match="a Silent, which does not say how it is merged: implement"):
        require_mergeable(Silent(), "x")
    with pytest.raises(UserError, match="changes the inputs and no weight"):
        require_mergeable(PromptTuning(), "x")


def test_layers_that_are_not_there_are_named():
    with pytest.raises(UserError, match="target_modules"):
        IA3(target_modules=["k_prj"]).attach(tiny_model("llama"))


# ---- training ---------------------------------------------------------------------------------


def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path, base, rows):
    files = resumed_and_whole(tmp_path, base, rows, ["examples.my_ia3.IA3", {}])
    ours, expected = map(load_file, files)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    reloaded = CausalLMModule.load_from_checkpoint(tmp_path / "again/run/checkpoints/last.ckpt")
    assert type(reloaded.adapter).__name__ == "IA3"
    assert all(torch.equal(t, expected[n]) for n, t in reloaded.state_dict().items())


@pytest.fixture(scope="module")
def strategies(tmp_path_factory):
    """The runs of one process, and of two by each strategy."""
    root = tmp_path_factory.mktemp("strategies")
    base = write_base(root / "opt", "opt", torch.float64)
    options = {
        "base": str(base),
        "rows": str(write_rows(root / "9.jsonl", 9)),
        "adapter": ["examples.my_ia3.IA3", OF_OPT],
    }
    run(root / "one", {**options, "data": {"batch_size": 4}}, 1)
    two = {**options, "data": {"batch_size": 2}}
    in_processes(2, root, {s: {**two, "trainer": {"strategy": s}} for s in ("ddp", "fsdp2")})
    return root


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_the_vectors_of_one(strategies, strategy):
    for name in ("one", strategy):
        assert outcome(strategies, name)["error"] is None
    ours, expected = (load_file(strategies / n / "weights.safetensors") for n in (strategy, "one"))
    assert ours.keys() == expected.keys()
    assert any((tensor - 1).abs().max() > 1e-3 for tensor in expected.values())
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-7, atol=1e-9)
    saved = load_file(strategies / strategy / "run/checkpoints/last.ckpt/adapter_model.safetensors")
    assert all(torch.equal(tensor, ours[name]) for name, tensor in saved.items())


def test_saving_names_the_class(tmp_path):
    model, adapter = tiny_model("llama"), LoRA(r=2)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "ours")
    assert "adapter_class" not in (tmp_path / "ours/peft_lightning.json").read_text()
    our_folder(IA3(), tiny_model("llama"), tmp_path / "own")
    facts = (tmp_path / "own/peft_lightning.json").read_text()
    assert '"adapter_class": "examples.my_ia3.IA3"' in facts
