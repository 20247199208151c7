"""Layers below the adapter: no graph, and their outputs read from disk instead of computed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForCausalLM

import warm_python
from exactness import sgd
from peft_lightning import CausalLMModule, Constant, Full, LoRA, PromptTuning, SFTDataModule
from peft_lightning.hidden_cache.cache import adapted_depth
from peft_lightning.hidden_cache.frozen_layers import FrozenLayers
from peft_lightning.hidden_cache.store import HiddenStates
from peft_lightning.kernels.decoder_layers import decoder_layers
from rounding import BACKWARD, FORWARD, assert_near, rounding_error
from tiny import ARCHITECTURES, tiny_model
from tiny_run import fit, write_base, write_rows

UPPER = LoRA(r=2, layers_to_transform=1, init_lora_weights=False)
CACHED = {"cache_hidden_states": True}
# AdamW divides a gradient by its own size, so that one of rounding errors alone moves a weight by
# the whole learning rate
DESCENT = {"optimizer": sgd}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_of_the_layers_below_the_adapter_is_kept_for_the_backward_pass(architecture):
    model = tiny_model(architecture)
    UPPER.attach(model)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    graphs, sizes = [], []
    for layer in decoder_layers(model):
        layer.register_forward_hook(lambda *args: graphs.append(args[-1].requires_grad))
        layer.register_forward_hook(lambda *args: sizes.append(len(kept)))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.arange(5)[None])
    assert graphs == [False, True]
    assert sizes[0] == 0 < sizes[1]


@pytest.mark.parametrize(
    ("adapter", "depth"),
    [
        (UPPER, 1),
        (LoRA(r=2), 0),
        (LoRA(r=2, layers_to_transform=0), 0),
        (LoRA(r=2, target_modules=["lm_head"]), 2),
        (PromptTuning(num_virtual_tokens=2), 0),
        (Full(), 0),
    ],
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_frozen_layers_are_those_that_no_gradient_reaches(architecture, adapter, depth):
    model = tiny_model(architecture)
    adapter.attach(model)
    assert adapted_depth(model, adapter) == depth


def test_a_trained_embedding_leaves_no_layer_frozen():
    model = tiny_model("llama")
    UPPER.attach(model)
    model.get_input_embeddings().weight.requires_grad_(True)
    assert adapted_depth(model, UPPER) == 0


class Calls(Callback):
    """Counts the batches that the first layer computes while a run trains and validates."""

    def __init__(self):
        self.count = 0

    def on_train_start(self, trainer, pl_module):
        module = decoder_layers(pl_module.model)[0].input_layernorm
        module.register_forward_hook(self.counted)

    def counted(self, module, args, output):
        self.count += output.shape[1] > 12  # the checks of a first batch use shorter ones


def tensors(trainer):
    return trainer.lightning_module.state_dict()


def run(base, rows, root, **options):
    module = {**CACHED, "lr_schedule": Constant(), **options.pop("module", {})}
    return fit(base, rows, root, adapter=UPPER, module=module, **options)


def cache_folders(root):
    return sorted(f for f in (root / "cache" / "frozen").iterdir() if f.is_dir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_from_the_cache_is_training_without_it(base, rows, tmp_path, dtype):
    calls = Calls()
    precision = "32-true" if dtype == "float32" else "bf16-mixed"
    cached, plain = (
        run(
            base,
            rows,
            tmp_path / str(cache),
            callbacks=[calls] if cache else [],
            module={"cache_hidden_states": cache, "dtype": dtype, **DESCENT},
            precision=precision,
        )
        for cache in (True, False)
    )
    assert calls.count == 0, "the first layer ran, in training or validation"
    steps = {"dtype": getattr(torch, dtype), "products": BACKWARD, "steps": plain.global_step}
    assert_near(tensors(cached), tensors(plain), **steps)
    ours, theirs = (float(t.callback_metrics["val/loss"]) for t in (cached, plain))
    assert ours == pytest.approx(theirs, rel=rounding_error(**steps))


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "opt", "mistral"])
def test_every_architecture_trains_from_the_cache_in_both_layouts(architecture, tmp_path):
    base = write_base(tmp_path / "base", architecture)
    rows = write_rows(tmp_path / "rows.jsonl", 8)
    found = []
    for layout, module in (
        ("flat", CACHED),
        ("padded", CACHED),
        ("flat", {"cache_hidden_states": False}),
    ):
        data = {"layout": layout}
        options = {"max_epochs": 1, "enable_checkpointing": False, "data": data}
        trainer = run(base, rows, tmp_path / "run", module={**module, **DESCENT}, **options)
        found.append(tensors(trainer))
    for layout in (0, 1):
        assert_near(found[layout], found[2], products=BACKWARD, steps=trainer.global_step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_stored_is_the_layers_output_for_each_row(base, rows, tmp_path, dtype):
    precision = "32-true" if dtype == "float32" else "bf16-mixed"
    options = {"module": {"dtype": dtype}, "precision": precision, "max_steps": 1}
    trainer = run(base, rows, tmp_path / "run", **options)
    (folder,) = cache_folders(tmp_path)
    states = HiddenStates(folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    (source,) = trainer.datamodule.tokenized_datasets
    assert len(source) == 24
    for row in source:
        ids = row["input_ids"]
        wanted = model(torch.from_numpy(ids)[None], output_hidden_states=True).hidden_states[1][0]
        assert_near(states.find(ids), wanted.detach(), products=FORWARD // 2)  # one layer of two
    assert states.find(np.array([1, 2, 3])) is None


def test_other_batches_and_orders_read_the_same_numbers(base, rows, tmp_path):
    run(base, rows, tmp_path / "a", max_steps=1)
    (folder,) = cache_folders(tmp_path)
    before = (folder / "states.bin").stat()
    calls = Calls()
    data = {"batch_size": 3, "seed": 7}
    run(base, rows, tmp_path / "b", callbacks=[calls], data=data, max_epochs=1)
    run(base, rows, tmp_path / "c", callbacks=[calls], data={"tokens_per_batch": 300}, max_epochs=1)
    assert calls.count == 0
    assert cache_folders(tmp_path) == [folder]
    after = (folder / "states.bin").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "removed in between"])
def test_a_resumed_run_computes_bit_for_bit_the_same(base, rows, tmp_path, lost):
    from shutil import rmtree

    whole = run(base, rows, tmp_path / "whole", max_steps=8, max_epochs=-1)
    run(base, rows, tmp_path / "part", max_steps=3, max_epochs=-1)
    if lost:
        rmtree(tmp_path / "cache" / "frozen")
    last = tmp_path / "part" / "checkpoints" / "last.ckpt"
    resumed = run(base, rows, tmp_path / "part", ckpt_path=str(last), max_steps=8, max_epochs=-1)
    assert resumed.global_step == 8
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(resumed)[name]), name


def test_another_base_dtype_or_depth_has_a_cache_of_its_own(base, rows, tmp_path):
    other = write_base(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    torch.nn.init.normal_(model.model.embed_tokens.weight)
    model.save_pretrained(other)
    run(base, rows, tmp_path / "a", max_steps=1)
    run(other, rows, tmp_path / "b", max_steps=1)
    run(base, rows, tmp_path / "c", max_steps=1, module={"dtype": "bfloat16"})
    head_only = LoRA(r=2, target_modules=["lm_head"])
    fit(base, rows, tmp_path / "d", adapter=head_only, module=CACHED, max_steps=1)
    assert len(cache_folders(tmp_path)) == 4


@pytest.mark.parametrize("share", [2, 1000])  # half of it, or nothing
@pytest.mark.parametrize("file", ["states.bin", "rows.npy", "meta.json"])
def test_a_torn_file_is_made_anew(base, rows, tmp_path, file, share):
    run(base, rows, tmp_path / "a", max_steps=1)
    (folder,) = cache_folders(tmp_path)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // share] if share == 2 else b"")
    run(base, rows, tmp_path / "b", max_steps=1)
    assert (folder / file).read_bytes() == whole


def test_states_that_changed_on_the_disk_are_an_error(base, rows, tmp_path):
    run(base, rows, tmp_path / "a", max_steps=1)
    (folder,) = cache_folders(tmp_path)
    content = bytearray((folder / "states.bin").read_bytes())
    for place in range(0, len(content), 97):
        content[place] ^= 1
    (folder / "states.bin").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: remove it"):
        run(base, rows, tmp_path / "b", max_steps=1)


def test_the_bytes_are_said_before_they_are_written(base, rows, tmp_path, monkeypatch):
    from peft_lightning.hidden_cache import cache

    said = []

    def announce(text):
        folders = list((tmp_path / "cache" / "frozen").glob("*/"))
        said.append((text, len(folders)))

    monkeypatch.setattr(cache, "rank_zero_info", announce)
    trainer = run(base, rows, tmp_path / "a", max_steps=1)
    tokens = int(trainer.datamodule.tokenized_datasets[0].lengths.sum())
    (folder,) = cache_folders(tmp_path)
    size = (folder / "states.bin").stat().st_size
    assert size == tokens * 32 * 4
    assert said[0][1] == 0
    assert f"x 32 x 4 bytes = {size:,} bytes" in said[0][0]


def test_a_cache_above_the_limit_is_refused_and_old_ones_make_room(base, rows, tmp_path):
    trainer = run(base, rows, tmp_path / "a", max_steps=1)
    (first,) = cache_folders(tmp_path)
    size = int(trainer.datamodule.tokenized_datasets[0].lengths.sum()) * 32 * 4
    limit = 1.5 * size / 2**30
    more = write_rows(tmp_path / "more.jsonl", 23, seed=3)
    with pytest.raises(ValueError, match="raise it, or set cache_hidden_states to false"):
        run(base, rows, tmp_path / "b", max_steps=1, module={"hidden_cache_gib": limit / 2})
    assert cache_folders(tmp_path) == [first]
    run(base, more, tmp_path / "c", max_steps=1, module={"hidden_cache_gib": limit})
    (second,) = cache_folders(tmp_path)
    assert second != first


@pytest.mark.parametrize(
    "adapter",
    [LoRA(r=2), PromptTuning(num_virtual_tokens=2), LoRA(r=2, layers_to_transform=[0])],
    ids=["every layer", "prompt", "lowest layer"],
)
def test_an_adapter_that_reaches_the_lowest_layer_is_refused(base, rows, tmp_path, adapter):
    with pytest.raises(ValueError, match="needs lowest layers that nothing trained reaches"):
        fit(base, rows, tmp_path / "run", adapter=adapter, module=CACHED)


def test_random_numbers_below_the_adapter_are_refused(base, rows, tmp_path):
    class Training(CausalLMModule):
        def configure_model(self):
            super().configure_model()
            self.model.train()

    with pytest.raises(ValueError, match="is in training mode"):
        run(base, rows, tmp_path / "run", module_class=Training)


def test_upper_layers_may_be_in_training_mode():
    model = tiny_model("llama")
    layers = FrozenLayers(model, 1)
    decoder_layers(model)[1].train()
    assert layers.random_module() is None
    decoder_layers(model)[0].self_attn.train()
    assert layers.random_module() == "layers.0.self_attn"


def test_rows_of_a_loader_without_tokens_are_refused(base, rows, tmp_path):
    import lightning as L

    data = SFTDataModule(train=str(rows), tokenizer=str(base), cache_dir=str(tmp_path))
    data.setup("fit")
    module = CausalLMModule(str(base), UPPER, cache_hidden_states=True)
    trainer = L.Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu")
    with pytest.raises(ValueError, match="needs the rows of SFTDataModule"):
        trainer.fit(module, data.train_dataloader())


def test_two_processes_that_start_at_once_share_one_cache(base, rows, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from test_cache import run, tensors\n"
        "base, rows, root = map(Path, sys.argv[1:])\n"
        "trainer = run(base, rows, root, max_steps=3)\n"
        "print(sum(t.double().sum().item() for t in tensors(trainer).values()).hex())\n"
    )
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{here.parent}/drivers"}
    programs = []
    for name in ("a", "b"):
        with (tmp_path / f"{name}.txt").open("w") as out:
            arguments = ["-c", code, base, rows, tmp_path / name]
            programs.append(warm_python.start(arguments, env=env, stdout=out))
    assert [program.wait(500) for program in programs] == [0, 0]
    results = [(tmp_path / f"{name}.txt").read_text().split()[-1] for name in ("a", "b")]
    assert results[0] == results[1]
    (folder,) = cache_folders(tmp_path)
    assert sorted(f.name for f in folder.iterdir()) == ["meta.json", "rows.npy", "states.bin"]
    assert json.loads((folder / "meta.json").read_text())["rows"] == 24
