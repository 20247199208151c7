"""Folders of other programs through the commands: merged, switched in a bank, trained on."""

import shutil

import pytest
from peft import LoraConfig
from transformers import AutoModelForCausalLM

import warm_python
from cli_driver import ENVIRONMENT
from foreign_folders import as_mlx, edit, in_parts, rename, with_base
from foreign_situations import of_images_too
from parity import IDS, hf_folder
from peft_lightning.adapters.bank import AdapterBank
from peft_lightning.adapters.folder import read_adapter, save_adapter
from peft_lightning.base_model import load_base_model, resolve
from peft_lightning.commands.check_serving import check_serving
from peft_lightning.commands.inspect import inspect
from peft_lightning.commands.merge import merge
from peft_lightning.messages import UserError
from peft_lightning.training.warm_start import attach_trained
from rounding import assert_near
from tiny_run import write_base

LINEAR = {"target_modules": ["q_proj", "up_proj"]}
HALF = {"alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3}}


def base_weights(adapted_only):
    """Return a change that adds weights of the base in the folder beside it."""

    def change(folder):
        model = AutoModelForCausalLM.from_pretrained(folder.parent / "base")
        with_base(folder, model, adapted_only)

    return change


FOLDERS = {
    "all base weights": (base_weights(False), LINEAR),
    "base weights of layers": (base_weights(True), LINEAR),
    "bare decoder": (rename(r"model\.model\.", "model."), {**LINEAR, **HALF}),
    "language_model": (of_images_too, {**LINEAR, "rank_pattern": {"up_proj": 2}}),
    "mlx": (as_mlx(), {**LINEAR, "use_dora": True}),
    "parts": (in_parts, {**LINEAR, "use_rslora": True}),
    "head": (rename("^", "module."), {"target_modules": ["lm_head"], "init_lora_weights": "pissa"}),
    "patterns": (edit(rank_pattern={"x": 3}, layers_to_transform=[1, 9]), {**LINEAR}),
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a base and, by name, folders with HF PEFT's logits for each."""
    place = tmp_path_factory.mktemp("foreign")
    base, made = write_base(place / "base"), {}
    for name, (change, fields) in FOLDERS.items():
        layers = {"layers_to_transform": [1]} if name == "patterns" else {}
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **fields, **layers)
        model = AutoModelForCausalLM.from_pretrained(base).eval()
        logits = hf_folder(config, model, place / name)(IDS).logits
        change(place / name)
        made[name] = place / name, logits
    return base, made


@pytest.mark.parametrize("name", FOLDERS)
def test_a_merged_folder_computes_what_hf_peft_does(name, folders, tmp_path):
    base, made = folders
    folder, logits = made[name]
    merge(str(folder), str(tmp_path / "out"), base_model=str(base), verify=False)
    assert_near(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()(IDS).logits, logits)


def test_a_bank_switches_between_folders_of_several_programs(folders):
    base, made = folders
    model = load_base_model(str(base))
    bank = AdapterBank(model)
    for name, (folder, _) in made.items():
        bank.add(name, folder)
    for name in [*made, *reversed(made)]:
        bank.use(name)
        assert_near(model(IDS).logits, made[name][1])


@pytest.mark.parametrize("name", FOLDERS)
def test_training_goes_on_from_it_and_what_is_saved_is_ours_and_hf_pefts(name, folders, tmp_path):
    from peft import PeftModel

    base, made = folders
    model = load_base_model(str(base), frozen=False)
    adapter = attach_trained(model, made[name][0], read_adapter(made[name][0]).adapter, None)
    assert any(p.requires_grad for p in model.parameters())
    save_adapter(adapter, model, tmp_path / "ours")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "ours")
    assert_near(peft.eval()(IDS).logits, made[name][1])


@pytest.mark.parametrize("name", FOLDERS)
def test_inspect_shows_the_layers_and_that_it_is_read(name, folders, capsys):
    try:
        inspect(str(folders[1][name][0]))
    except RuntimeError as error:
        assert "holds weights of its base" in str(error)  # noqa: PT017 - the head's
    shown = capsys.readouterr().out
    assert "LORA" in shown
    assert "NOT READ" not in shown
    assert ("norm of the update" in shown) == (name != "head")  # which needs the base for that


def test_check_serving_says_how_mlxs_becomes_hf_pefts(folders):
    base, made = folders
    with pytest.raises(
        UserError, match=r"mlx is MLX's, and .* read HF PEFT's folders: write it as HF"
    ):
        check_serving(str(made["mlx"][0]), base_model=str(base))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit(target_parameters=["a.b"]), "target_parameters"),
        (edit(init_lora_weights="corda"), "did not save"),
        (edit(use_qalora=True), "use_qalora=True, which LoRA does not implement: load it with HF"),
    ],
)
def test_inspect_and_loading_give_one_reason(change, reason, folders, tmp_path, capsys):
    folder = shutil.copytree(folders[1]["parts"][0], tmp_path / "x")
    change(folder)
    inspect(str(folder))
    with pytest.raises(UserError, match=reason) as error:
        read_adapter(folder)
    assert f"NOT READ      {error.value}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["merge", "inspect", "generate"])
def test_a_warning_is_one_line_whatever_is_imported_in_the_midst_of_a_command(
    command, folders, tmp_path
):
    """Lightning sets a form of its own for all warnings when it is imported."""
    base, made = folders
    words = [command, str(made["parts"][0])]
    if command == "merge":
        words += [str(tmp_path / "out"), "--base_model", str(base)]
    elif command == "generate":
        words = [command, "--prompt", "a", "--ckpt_path", words[1], "--base_model", str(base)]
    done = warm_python.run(["-m", "peft_lightning", *words], env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert ".py:" not in done.stderr
    warned = [line for line in done.stderr.splitlines() if "has no fingerprint" in line]
    assert [line.partition("warning: ")[0] for line in warned] == [""] * (command != "inspect")
