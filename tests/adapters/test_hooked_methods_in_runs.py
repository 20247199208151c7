"""OFT, MiSS and IA3 in runs: resumed, on several processes, above cached layers, by commands."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cli_driver import drive
from parity import IDS, our_folder
from peft_lightning import IA3, OFT, AdapterBank, MiSS, load_adapter
from peft_lightning.hidden_cache.frozen_layers import frozen_depth
from processes import in_processes, outcome, resumed_and_whole, run
from tiny import tiny_model
from tiny_run import write_base, write_rows

OF_OPT = {"target_modules": ["k_proj", "v_proj", "fc2"]}
METHODS = {
    "OFT": {"oft_block_size": 8, "module_dropout": 0.25},
    "MiSS": {"r": 4, "miss_dropout": 0.1},
    "IA3": {},
}
SAID = {"generate": "", "merge": "verified", "inspect": "tensors", "check-serving": "vllm: no"}


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_bit_for_bit_the_undisturbed_one(tmp_path, base, rows, method):
    files = resumed_and_whole(tmp_path, base, rows, [method, METHODS[method]])
    ours, expected = map(load_file, files)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def strategies(tmp_path_factory):
    """The runs of one process, and of two by each strategy."""
    root = tmp_path_factory.mktemp("strategies")
    base = write_base(root / "opt", "opt", torch.float64)
    options = {"base": str(base), "rows": str(write_rows(root / "9.jsonl", 9))}
    plain = {
        "OFT": {"oft_block_size": 8, **OF_OPT},
        "MiSS": {"r": 4, **OF_OPT},
        "IA3": {**OF_OPT, "feedforward_modules": ["fc2"]},
    }
    both = {}
    for method, fields in plain.items():
        one = {**options, "adapter": [method, fields]}
        run(root / method, {**one, "data": {"batch_size": 4}}, 1)
        two = {**one, "data": {"batch_size": 2}}
        both |= {f"{method} {s}": {**two, "trainer": {"strategy": s}} for s in ("ddp", "fsdp2")}
    in_processes(2, root, both)
    return root


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_the_tensors_of_one(strategies, method, strategy):
    name = f"{method} {strategy}"
    for done in (method, name):
        assert outcome(strategies, done)["error"] is None
    ours, expected = (load_file(strategies / n / "weights.safetensors") for n in (name, method))
    assert ours.keys() == expected.keys()
    start = 1.0 if method == "IA3" else 0.0
    assert any((tensor - start).abs().max() > 1e-3 for tensor in expected.values())
    for key, tensor in expected.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-7, atol=1e-9)
    saved = load_file(strategies / name / "run/checkpoints/last.ckpt/adapter_model.safetensors")
    assert all(torch.equal(tensor, ours[key]) for key, tensor in saved.items())


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory, base, rows):
    """A folder in which a fit of each method has run, and the name of the method."""
    folder = tmp_path_factory.mktemp("trained")
    adapter = {"class_path": request.param, "init_args": METHODS[request.param]}
    config = {
        "model": {"base_model": str(base), "adapter": adapter},
        "data": {"train": str(rows), "val": str(rows), "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": "run"},
    }
    (folder / "a.yaml").write_text(yaml.safe_dump(config))
    ((status, _, errors),) = drive(folder, [["fit", "--config", "a.yaml"]])
    assert status == 0, errors
    return folder, request.param


CKPT = "run/checkpoints/last.ckpt"


def test_commands_read_what_was_trained(trained, base):
    folder, method = trained
    lines = {
        "generate": ["--ckpt_path", CKPT, "--prompt", "say", "--max_new_tokens", "3"],
        "merge": [CKPT, "merged", "--dtype", "float32"],
        "inspect": [CKPT],
        "check-serving": [CKPT],
        "card": [CKPT],
        "validate": ["--config", "a.yaml", "--ckpt_path", CKPT],
        "fit": [
            *["--config", "a.yaml", "--model.init_from", CKPT],
            *["--trainer.default_root_dir", "on"],
        ],
    }
    done = drive(folder, [[command, *args] for command, args in lines.items()])
    for command, (status, out, errors) in zip(lines, done, strict=True):
        assert status == 0, (command, errors)
        assert SAID.get(command, "") in out + errors, command
    model = AutoModelForCausalLM.from_pretrained(base)
    load_adapter(model, folder / CKPT)
    plain = AutoModelForCausalLM.from_pretrained(folder / "merged")
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (
        json.loads((folder / CKPT / "adapter_config.json").read_text())["peft_type"]
        == {
            "OFT": "OFT",
            "MiSS": "MISS",
            "IA3": "IA3",
        }[method]
    )


def test_commands_for_lora_alone_say_so(trained):
    folder, method = trained
    for command, args in {
        "export": [CKPT, "x.gguf"],
        "combine": ["out", f"{CKPT}=1", f"{CKPT}=1"],
        "resize": [CKPT, "out", "--rank", "1"],
    }.items():
        ((status, _, errors),) = drive(folder, [[command, *args]])
        assert status == 2
        assert errors.count("\n") == 1
        assert method.upper() in errors


def test_a_bank_switches_between_them(tmp_path):
    kinds = {"oft": OFT(8), "miss": MiSS(4), "ia3": IA3()}
    expected = {}
    for name, adapter in kinds.items():
        model = tiny_model("llama")
        our_folder(adapter, model, tmp_path / name)
        expected[name] = model.eval()(IDS).logits
    model = tiny_model("llama").eval()
    plain = model(IDS).logits
    bank = AdapterBank(model)
    for name in kinds:
        bank.add(name, tmp_path / name)
    for name in ["ia3", "oft", "base", "miss", "oft", "ia3"]:
        bank.use(name)
        assert torch.equal(model(IDS).logits, plain if name == "base" else expected[name])


@pytest.mark.parametrize("kind", [OFT(8, layers_to_transform=1), MiSS(4, layers_to_transform=1)])
def test_the_layers_below_are_frozen_and_may_be_cached(kind):
    model = tiny_model("llama")
    kind.attach(model)
    assert frozen_depth(model) == 1
