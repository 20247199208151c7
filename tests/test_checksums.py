"""What a disk has damaged is found before it is used."""

import shutil
import subprocess

import pytest

from peft_lightning import LoRA, load_adapter, save_adapter
from peft_lightning.adapters.folder import read_adapter
from peft_lightning.files import require_undamaged, sealed_folder
from tiny import tiny_model

FILES = ["adapter_config.json", "adapter_model.safetensors", "peft_lightning.json"]


@pytest.fixture
def folder(tmp_path):
    model = tiny_model("llama")
    adapter = LoRA(r=2)
    adapter.attach(model)
    save_adapter(adapter, model, tmp_path / "x")
    return tmp_path / "x"


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="there is no sha256sum")
def test_sha256sum_checks_our_folder(folder):
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == FILES
    flip_a_bit(folder / FILES[1])
    assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", FILES)
def test_one_bit_that_is_not_what_was_written_is_found_and_named(folder, name):
    flip_a_bit(folder / name)
    with pytest.raises(ValueError, match=f"x is damaged: {name} is not what was written"):
        load_adapter(tiny_model("llama"), folder)


def test_a_file_cut_short_or_lost_is_named(folder):
    file = folder / FILES[1]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="safetensors is not what was written"):
        read_adapter(folder)
    (folder / FILES[2]).unlink()
    with pytest.raises(ValueError, match=r"peft_lightning\.json of its SHA256SUMS is not there"):
        read_adapter(folder)


def test_checksums_that_are_damaged_themselves_are_found(folder):
    sums = folder / "SHA256SUMS"
    whole = sums.read_bytes()
    for damage in (b"", b"\0" * len(whole), b"\xff\xfe\n", whole[: len(whole) // 2]):
        sums.write_bytes(damage)
        with pytest.raises(ValueError, match="x is damaged"):
            read_adapter(folder)
    sums.unlink()
    assert read_adapter(folder)[0] == LoRA(
        r=2, target_modules=read_adapter(folder)[0].target_modules
    )


def test_what_is_not_read_may_be_gone(tmp_path):
    with sealed_folder(tmp_path / "x") as folder:
        for name in "ab":
            (folder / name).write_text(name)
    (tmp_path / "x" / "b").unlink()
    require_undamaged(tmp_path / "x", ["a"])
    with pytest.raises(ValueError, match="b of its SHA256SUMS is not there"):
        require_undamaged(tmp_path / "x")
