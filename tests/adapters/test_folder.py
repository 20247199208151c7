import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_lightning.adapters import (
    Adapter,
    LoRA,
    PromptTuning,
    attached_adapter,
    load_adapter,
    read_adapter,
    save_adapter,
)
from peft_lightning.adapters.base_check import require_base
from peft_lightning.adapters.folder import adapter_texts
from peft_lightning.messages import UserError
from tiny import tiny_model

IDS = torch.arange(3, 17).view(2, 7)


@pytest.fixture
def saved(tmp_path):
    """Return a model with an adapter, the adapter and the folder it is saved in."""
    model = tiny_model("llama")
    adapter = LoRA(r=2, target_modules=["q_proj"], init_lora_weights=False, lora_dropout=0.5)
    adapter.attach(model)
    folder = tmp_path / "adapter"
    save_adapter(adapter, model, folder, {"base_fingerprint": {"weights": "abc"}, "step": 7})
    return model.eval(), adapter, folder


def damaged(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    (folder / "SHA256SUMS").unlink(missing_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_what_is_saved_is_loaded(saved):
    model, adapter, folder = saved
    fresh = tiny_model("llama")
    assert load_adapter(fresh, folder) == adapter
    assert torch.equal(fresh(IDS).logits, model(IDS).logits)
    assert not any(p.requires_grad for p in fresh.parameters())
    assert not any(module.training for module in fresh.modules())


def test_a_trainable_adapter_trains_on_with_its_dropout(saved):
    _, adapter, folder = saved
    fresh = tiny_model("llama")
    load_adapter(fresh, folder, trainable=True)
    trainable = {n for n, p in fresh.named_parameters() if p.requires_grad}
    assert trainable == {n.removeprefix("base_model.model.") for n in adapter.state_dict(fresh)}
    assert not torch.equal(fresh(IDS).logits, fresh(IDS).logits)


def test_our_own_facts_stand_in_their_own_file(saved):
    _, _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "peft_lightning.json",
    ]
    facts = json.loads((folder / "peft_lightning.json").read_text())
    assert facts == {
        "base_fingerprint": {"weights": "abc"},
        "base_model": None,
        "format_version": 1,
        "peft_type": "LORA",
        "step": 7,
    }
    assert read_adapter(folder)[2] == facts


def test_the_base_models_name_is_read_from_hf_pefts_file_if_there_is_no_other(saved):
    _, _, folder = saved
    (folder / "peft_lightning.json").unlink()
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "x/y"})
    )
    assert read_adapter(folder)[2] == {"base_model": "x/y", "base_fingerprint": None}


def test_nothing_is_written_to_list_the_files(saved):
    model, adapter, folder = saved
    texts = adapter_texts(adapter, model, {"step": 8})
    assert set(texts) == {"adapter_config.json", "peft_lightning.json"}
    own = dict(model.named_parameters())
    assert all(
        tensor.data_ptr() == own[key.removeprefix("base_model.model.")].data_ptr()
        for key, tensor in adapter.state_dict(model).items()
    )
    assert json.loads((folder / "peft_lightning.json").read_text())["step"] == 7


def test_another_base_is_refused_unless_asked_for(saved):
    _, _, folder = saved
    fresh = tiny_model("llama")
    with pytest.raises(
        ValueError, match=r"another base model, .*: its weights have other values than these"
    ):
        load_adapter(fresh, folder, base_fingerprint={"weights": "xyz"})
    load_adapter(
        fresh, folder, allow_base_mismatch=True, base_fingerprint={"weights": "xyz"}
    ).detach(fresh)
    load_adapter(fresh, folder, base_fingerprint={"weights": "abc"})


def test_a_base_is_known_by_its_fingerprint_whatever_it_is_called(saved, recwarn):
    _, adapter, folder = saved
    facts = json.loads((folder / "peft_lightning.json").read_text())
    (folder / "peft_lightning.json").write_text(json.dumps({**facts, "base_model": "a/b"}))
    (folder / "SHA256SUMS").unlink()
    recwarn.clear()
    fresh = tiny_model("llama")
    fresh.config._name_or_path = "of/another/name"
    assert load_adapter(fresh, folder, base_fingerprint={"weights": "abc"}) == adapter
    assert not [w for w in recwarn if w.category is UserWarning]


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ({"architecture": "B"}, "it is a A, and this is a B"),
        ({"parameters": 3}, "it has 2 parameters, and this has 3"),
        ({"shapes": "s"}, "its weights have other names or shapes than these"),
        ({"weights": "w"}, "its weights have other values than these"),
        ({"quantized": True, "shapes": "s"}, "its weights have other names or shapes than these"),
    ],
)
def test_what_tells_two_bases_apart_is_said_in_words(other, difference):
    own = {"architecture": "A", "parameters": 2, "shapes": "x", "weights": "y"}
    with pytest.raises(ValueError, match=f"on another base model, m: {difference}[.] Give that"):
        require_base("a", {"base_fingerprint": own, "base_model": "m"}, {**own, **other})


@pytest.mark.parametrize("trained_over", ["plain", "quantised"])
def test_quantised_and_plain_weights_of_one_shape_are_accepted_in_a_line(trained_over):
    plain = {"architecture": "A", "parameters": 2, "shapes": "x", "weights": "y"}
    quantised = {**plain, "weights": "z", "quantized": True}
    own, here = (plain, quantised) if trained_over == "plain" else (quantised, plain)
    with pytest.warns(match=f"was trained over the {trained_over} weights of m, and these are"):
        require_base("a", {"base_fingerprint": own, "base_model": "m"}, here)


def test_missing_unexpected_and_misshapen_tensors_are_named_together(saved):
    _, _, folder = saved
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"

    def change(tensors):
        tensors["other"] = tensors.pop(key.format(0, "A"))
        tensors[key.format(1, "A")] = torch.zeros(3, 32)

    damaged(folder, change)
    fresh = tiny_model("llama")
    before = fresh(IDS).logits
    with pytest.raises(ValueError, match="do not fit the adapter") as error:
        load_adapter(fresh, folder)
    message = str(error.value)
    assert f"1 missing in the file: {key.format(0, 'A')}" in message
    assert "1 unexpected in the file: other" in message
    assert (
        f"1 of another shape in the file: {key.format(1, 'A')} (3, 32) instead of (2, 32)"
        in message
    )
    assert attached_adapter(fresh) is None
    assert torch.equal(fresh(IDS).logits, before)


def test_long_lists_of_names_are_shortened_with_a_count(saved):
    model, adapter, _ = saved
    extra = {f"x{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(
        ValueError,
        match=r"30 unexpected in the file: x0, x1, x2, x3, x4 and 25 more; give the base",
    ):
        adapter.load_state_dict(model, {**adapter.state_dict(model), **extra})


def test_loading_copies_into_the_parameters_in_their_dtype():
    model = tiny_model("llama")
    adapter = PromptTuning(num_virtual_tokens=2)
    adapter.attach(model)
    parameter = model.prompt_embeddings
    adapter.load_state_dict(model, {"prompt_embeddings": torch.ones(2, 32, dtype=torch.bfloat16)})
    assert model.prompt_embeddings is parameter
    assert (parameter.dtype, parameter.unique().tolist()) == (torch.float32, [1.0])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_not_saved_and_the_old_folder_stays(value, saved):
    model, adapter, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    adapter.state_dict(model)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][
        3, 1
    ] = value
    with pytest.raises(
        ValueError, match=r"1 of 4 tensors .* not finite: .*0.self_attn.q_proj.lora_B"
    ):
        save_adapter(adapter, model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_empty_tensors_are_not_saved(tmp_path):
    from peft_lightning.adapters.folder import write_files

    with pytest.raises(ValueError, match="no values in a"):
        write_files(tmp_path, "x.safetensors", {"a": torch.zeros(0, 3)}, {})
    with pytest.raises(ValueError, match="no values in the adapter"):
        write_files(tmp_path, "x.safetensors", {}, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "no adapter_config.json in it; it has nothing"),
        (
            {"a.txt": "x"},
            FileNotFoundError,
            "no adapter folder: no adapter_config.json.*it has a.txt",
        ),
        ({"v1/adapter_config.json": "{}"}, FileNotFoundError, r"there is one in \S*/v1"),
        ({"adapter_config.json": "{"}, ValueError, "adapter_config.json is not JSON"),
        ({"adapter_config.json": "[1]"}, ValueError, "must hold a JSON object, got list"),
        (
            {"adapter_config.json": '{"peft_type": "LORE"}'},
            ValueError,
            "'LORE' is not known.*mean LORA",
        ),
        (
            {"adapter_config.json": "{}"},
            ValueError,
            "peft_type None is not known here; there are FULL",
        ),
        (
            {"adapter_config.json": '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}'},
            FileNotFoundError,
            "no adapter_model.safetensors",
        ),
        (
            {
                "adapter_config.json": '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}',
                "adapter_model.bin": "",
            },
            FileNotFoundError,
            "a .bin file can run code and is not read",
        ),
        (
            {
                "adapter_config.json": '{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}',
                "adapter_model.safetensors": "torn",
            },
            ValueError,
            "adapter_model.safetensors cannot be read, it may be damaged",
        ),
        ({"peft_lightning.json": '{"format_version": 2}'}, ValueError, "format_version 2.*up to 1"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_with_the_reason(files, error, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message):
        read_adapter(tmp_path)


def test_a_repository_without_safetensors_says_why_and_what_to_do(tmp_path):
    folder = tmp_path / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(FileNotFoundError, match=r"as .bin .* is not fetched: .*save_pretrained it"):
        read_adapter(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere"):
        read_adapter(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="file is a file, not a folder"):
        read_adapter(tmp_path / "file")


def test_a_new_method_enters_the_readers_table_by_its_peft_type(saved, monkeypatch):
    monkeypatch.setattr(Adapter, "by_peft_type", dict(Adapter.by_peft_type))

    @dataclass(frozen=True)
    class Mine(LoRA):
        peft_type: ClassVar[str] = "MINE"

    @dataclass(frozen=True)
    class Variant(LoRA):
        """A subclass without a type of its own does not take its parent's place."""

    _, _, folder = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    assert type(read_adapter(folder)[0]) is LoRA
    (folder / "SHA256SUMS").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "MINE"}))
    assert type(read_adapter(folder)[0]) is Mine


def test_a_folder_of_hf_peft_is_said_to_have_no_fingerprint(tmp_path, recwarn):
    from peft import LoraConfig, get_peft_model

    get_peft_model(tiny_model("llama"), LoraConfig(r=2)).save_pretrained(tmp_path)
    recwarn.clear()
    load_adapter(tiny_model("llama"), tmp_path, base_fingerprint={"weights": "x"})
    said = [str(w.message) for w in recwarn if "fingerprint" in str(w.message)]
    assert len(said) == 1
    assert f"{tmp_path} has no fingerprint of its base" in said[0]
    load_adapter(
        tiny_model("llama"), tmp_path, allow_base_mismatch=True, base_fingerprint={"weights": "x"}
    )
    assert len([w for w in recwarn if "fingerprint" in str(w.message)]) == 1


@pytest.mark.parametrize("there", ["a file", "a folder beside an adapter", "a checkpoint"])
def test_what_is_no_adapter_is_not_replaced_by_one(there, tmp_path):
    adapter, model = LoRA(r=2), tiny_model("llama")
    adapter.attach(model)
    folder = tmp_path / "out"
    save_adapter(adapter, model, folder)
    save_adapter(adapter, model, folder)  # an adapter is
    if there == "a file":
        (folder / "adapter_model.safetensors").unlink()
    elif there == "a checkpoint":
        (folder / "trainer_state.pt").touch()
    else:
        (folder / "checkpoint-500").mkdir()
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="give another folder to write"):
        save_adapter(adapter, model, folder)
    assert sorted(folder.iterdir()) == before
