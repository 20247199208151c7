"""Files from elsewhere run no code, name no file outside of their folder, and take no secret."""

import json
import shutil

import pytest

from peft_lightning import LoRA, load_adapter, save_adapter
from peft_lightning.adapters.checksums import SUMS_FILE
from peft_lightning.adapters.files import read_adapter
from peft_lightning.base_model import load_base_model
from peft_lightning.base_model.weight_files import open_weights
from tiny import tiny_model


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
