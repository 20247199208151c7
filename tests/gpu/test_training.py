"""Whole runs on every device: precision, clipping, resume, checkpoints, the cache, the summary."""

import json

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file

from devices import draw_adapter, last_checkpoint, on_every_device, relative_error, trainer_on
from peft_lightning import CausalLMModule, Constant, LoRA, load_base_model, save_adapter
from peft_lightning.base_model import base_fingerprint
from peft_lightning.training.out_of_memory import is_out_of_memory
from tiny_run import fit, write_base

# what a product of each precision rounds by, times 16 for the roundings on the way through layers
PRECISIONS = {
    precision: 16 * torch.finfo(dtype).eps
    for precision, dtype in (
        ("32-true", torch.float32),
        ("16-mixed", torch.float16),
        ("bf16-mixed", torch.bfloat16),
    )
}
RATE = 1e-3  # so small that the gradients of a few steps are those at the start, nearly
CLIP = 0.5
STEPS = 3
FLOAT32 = {"dtype": "float32"}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A base and an adapter's folder: the same start on every device."""
    folder = tmp_path_factory.mktemp("start")
    base = write_base(folder / "base", "gpt2", torch.bfloat16)  # all of it computes in float64
    model, adapter = load_base_model(str(base), dtype="float32"), LoRA(r=2)
    facts = {"base_fingerprint": base_fingerprint(model)}
    adapter.attach(model)
    draw_adapter(adapter, model)
    save_adapter(adapter, model, folder / "adapter", facts)
    return base, folder / "adapter"


def in_precision(precision, device):
    """Return the options of a trainer; a loss scale so small that no first step is skipped."""
    if precision != "16-mixed":
        return {"precision": precision}
    scaler = torch.amp.GradScaler(device, init_scale=256.0)
    return {"plugins": [MixedPrecision("16-mixed", device, scaler)]}


def train(start, rows, root, device, precision, **options):
    """Train with plain SGD from ``start``; return what it added to each tensor."""
    base, adapter = start
    module = {"optimizer": sgd, "lr_schedule": Constant(), "dtype": "float32"}
    options |= in_precision(precision, device)
    trainer = fit(
        base,
        rows,
        root,
        module={**module, "init_from": str(adapter)},
        data={"val_fraction": 0, "shuffle": False},
        **{"max_steps": STEPS, "enable_checkpointing": False, **trainer_on(device), **options},
    )
    before = load_file(adapter / "adapter_model.safetensors")
    after = trainer.lightning_module.state_dict()
    prefix = "" if after.keys() == before.keys() else "base_model.model."
    moved = {n: t.cpu().double() - before[prefix + n].double() for n, t in after.items()}
    return moved, float(trainer.callback_metrics["grad_norm"])


@pytest.fixture(scope="module")
def exact(start, rows, tmp_path_factory):
    return train(start, rows, tmp_path_factory.mktemp("exact") / "run", "cpu", "64-true")[0]


@on_every_device
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_moves_the_weights_as_float64_does(start, rows, exact, precision, device, tmp_path):
    found, _ = train(start, rows, tmp_path / "run", device, precision)
    weights = load_file(start[1] / "adapter_model.safetensors").values()
    sizes = [
        torch.stack([t.norm() for t in tensors]).norm() for tensors in (weights, exact.values())
    ]
    stored = STEPS * torch.finfo(torch.float32).eps * float(sizes[0] / sizes[1])
    assert relative_error(found, exact) < PRECISIONS[precision] + stored


@on_every_device
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_clipped_step_is_as_long_as_the_limit_says(start, rows, precision, device, tmp_path):
    """Whatever the loss is scaled by: clipping sees the gradient of the mean."""
    options = {"max_steps": 1, "gradient_clip_val": CLIP, "accumulate_grad_batches": 2}
    moved, before = train(start, rows, tmp_path / "run", device, precision, **options)
    length = torch.stack([t.norm() for t in moved.values()]).norm().item()
    assert before > 2 * CLIP
    # the sum of some 2,000 weights below 1 that are each rounded to float32: 3e-6 of 5e-4
    assert length == pytest.approx(RATE * CLIP, rel=1e-2)


@pytest.fixture
def _undo_determinism():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_undo_determinism")
@on_every_device
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_deterministic_run_is_resumed_bit_for_bit(base, rows, precision, device, tmp_path):
    options = {
        "adapter": LoRA(r=2, lora_dropout=0.2),  # whose random numbers are the device's
        "module": {"lr_schedule": Constant(), "dtype": "float32"},
        "deterministic": True,
        **trainer_on(device),
    }

    def run(name, **more):
        fit(base, rows, tmp_path / name, **options, **in_precision(precision, device), **more)

    run("whole", max_epochs=2)
    run("cut", max_epochs=1)
    last = last_checkpoint(tmp_path / "cut")
    half = load_file(last / "adapter_model.safetensors")
    run("cut", max_epochs=2, ckpt_path=str(last))
    whole, resumed = (
        load_file(last_checkpoint(tmp_path / name) / "adapter_model.safetensors")
        for name in ("whole", "cut")
    )
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    assert any(not torch.equal(half[name], tensor) for name, tensor in whole.items())


@on_every_device
def test_a_checkpoint_of_one_device_is_used_on_another(base, rows, device, tmp_path):
    options = {"module": FLOAT32, "max_epochs": 1, **trainer_on(device)}
    trainer = fit(base, rows, tmp_path / "run", **options)
    trained = trainer.lightning_module.model.eval().to(device)
    ids = torch.arange(4, 44)[None]
    for place in {"cpu", device}:
        saved = last_checkpoint(tmp_path / "run")
        module = CausalLMModule.load_from_checkpoint(saved, **FLOAT32)
        found = module.model.eval().to(place)(ids.to(place)).logits
        wanted = trained(ids.to(device)).logits
        assert relative_error({"logits": found}, {"logits": wanted}) < 1e-5


@on_every_device
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_from_the_cache_is_training_without_it(base, rows, dtype, device, tmp_path):
    adapter = LoRA(r=2, layers_to_transform=1)
    updates = []
    for cached in (False, True):
        trainer = fit(
            base,
            rows,
            tmp_path / str(cached),
            adapter=adapter,
            module={"cache_hidden_states": cached, "dtype": dtype, "optimizer": sgd},
            precision="32-true" if dtype == "float32" else "bf16-mixed",
            max_steps=4,
            **trainer_on(device),
        )
        assert (trainer.lightning_module.outputs.frozen is not None) == cached
        weights = trainer.lightning_module.state_dict()
        updates.append({n: t for n, t in weights.items() if "lora_B" in n})  # they began as 0
    # rows go through the lower layers alone there, and side by side here
    bound = 16 * torch.finfo(getattr(torch, dtype)).eps
    assert relative_error(updates[1], updates[0]) < bound


@on_every_device
def test_the_peak_memory_that_is_reported_is_that_of_the_device(base, rows, device, tmp_path):
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    options = {"module": FLOAT32, "max_epochs": 1, **trainer_on(device)}
    trainer = fit(base, rows, tmp_path / "run", **options)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    reported = summary["peak_memory_bytes"]
    held = sum(p.numel() * p.element_size() for p in trainer.lightning_module.model.parameters())
    assert reported > held
    if device == "cuda":
        assert reported <= torch.cuda.max_memory_allocated() < torch.cuda.mem_get_info()[1]
        assert reported < 2**30  # a process of torch takes as much: it is not that which is said
    how = summary["paths"]["attention"]
    assert how == f"each sequence alone, on {device}" or "flash kernel" in how
    assert ("on the CPU" in summary["paths"]) == (device == "cpu")


@on_every_device
def test_a_tensor_that_does_not_fit_is_known_as_lack_of_memory(device):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)
