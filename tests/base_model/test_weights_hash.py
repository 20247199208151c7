"""The hash of a base's weight files: of every byte, and read once."""

import os

import pytest
import torch
from safetensors.torch import save_file

from peft_lightning.base_model import weights_hash as module
from peft_lightning.base_model.weights_hash import weights_hash


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with weights, and a cache of its own, which takes any file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SETTLED", -1)
    (tmp_path / "model").mkdir()
    save_file({"w": torch.zeros(1000)}, tmp_path / "model" / "model.safetensors")
    return tmp_path / "model"


def test_any_byte_changes_it_and_another_name_does_not(folder):
    before = weights_hash(str(folder))
    folder.rename(folder.with_name("other"))
    assert weights_hash(str(folder.with_name("other"))) == before
    file = folder.with_name("other") / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_hash(str(file.parent)) not in (before, None)


def test_a_file_is_read_once_until_it_changes(folder, monkeypatch):
    read = []
    monkeypatch.setattr(module, "sha256_of_file", lambda file: read.append(file) or "hash")
    for _ in range(3):
        weights_hash(str(folder))
    assert len(read) == 1
    os.utime(folder / "model.safetensors", ns=(1, 1))
    weights_hash(str(folder))
    assert len(read) == 2


def test_what_has_no_weight_files_has_none(folder):
    assert weights_hash(str(folder.parent)) is None
    assert weights_hash("nobody/no-such-model") is None
