"""A command reads the tensors of an adapter's folder once, and hashes each file once."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from parity import randomise
from peft_lightning import CausalLMModule, LoRA, load_adapter, save_adapter
from peft_lightning.adapters import folder_files
from peft_lightning.adapters.bank import AdapterBank
from peft_lightning.base_model import load_base_model, resolve
from peft_lightning.commands.export import export
from peft_lightning.commands.merge import merge
from peft_lightning.files import require_undamaged
from peft_lightning.inference.load import load_inference_model
from test_gguf import write_base
from tiny import tiny_model

TENSORS = "adapter_model.safetensors"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A base and a LoRA over it."""
    monkeypatch.setattr(resolve, "hub_answers", lambda: False)
    base = write_base(tmp_path / "base", "llama")
    model, adapter = load_base_model(str(base)), LoRA(r=2)
    adapter.attach(model)
    randomise(adapter.state_dict(model))
    save_adapter(adapter, model, tmp_path / "ckpt")
    return str(base), str(tmp_path / "ckpt")


@pytest.fixture
def reads(monkeypatch):
    """Count the reads of each adapter's tensors by the name of their folder."""
    counted = Counter()
    load_file = folder_files.load_file

    def counting(path):
        counted[Path(path).parent.name] += 1
        return load_file(path)

    monkeypatch.setattr(folder_files, "load_file", counting)
    return counted


@pytest.mark.filterwarnings("ignore:.*has no fingerprint of its base")
def test_merge_and_export_read_the_adapter_once(places, reads, tmp_path):
    _, ckpt = places
    merge(ckpt, str(tmp_path / "streamed"), max_logit_difference=0.1)
    assert reads.pop("ckpt") == 1
    export(ckpt, str(tmp_path / "lora.gguf"))
    assert reads.pop("ckpt") == 1
    export(ckpt, str(tmp_path / "model.gguf"), type="model", max_logit_difference=0.1)
    assert reads.pop("ckpt") == 1


@pytest.mark.filterwarnings("ignore:.*has no fingerprint of its base")
def test_a_merge_that_loads_the_base_whole_reads_the_adapter_once(places, reads, tmp_path):
    base, ckpt = places
    model, adapter = load_base_model(base), LoRA(r=2, modules_to_save=["lm_head"])
    adapter.attach(model)
    save_adapter(adapter, model, ckpt)
    merge(ckpt, str(tmp_path / "whole"), max_logit_difference=0.1)
    assert reads == {"ckpt": 1}


@pytest.mark.filterwarnings("ignore:.*has no fingerprint of its base")
def test_a_run_from_a_folder_a_model_to_answer_and_a_bank_read_the_adapter_once(places, reads):
    base, ckpt = places
    CausalLMModule(base, init_from=ckpt).configure_model()
    assert reads.pop("ckpt") == 1
    CausalLMModule.load_from_checkpoint(ckpt)
    assert reads.pop("ckpt") == 1
    load_inference_model(base, {"ckpt": ckpt})
    assert reads.pop("ckpt") == 1
    AdapterBank(load_base_model(base)).add("name", ckpt)
    assert reads.pop("ckpt") == 1


def test_a_file_is_hashed_again_only_if_it_has_changed(places, monkeypatch):
    folder = Path(places[1])
    monkeypatch.setattr("peft_lightning.files.checksums._CLOCK_STEP", 0)
    hashed = Counter()
    file_digest = hashlib.file_digest

    def counting(content, name):
        hashed[Path(content.name).name] += 1
        return file_digest(content, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    require_undamaged(folder)
    load_adapter(tiny_model("llama"), folder, allow_base_mismatch=True)
    require_undamaged(folder)
    assert set(hashed.values()) == {1}
    content = bytearray((folder / TENSORS).read_bytes())
    content[-1] ^= 1
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(ValueError, match=f"damaged: {TENSORS} is not what was written"):
        require_undamaged(folder)
    assert hashed[TENSORS] == 2
