"""Our parts in the programs of others: examples/elsewhere, and losses of batches of others."""

import importlib.util
import json
import os
import re
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

import warm_python
from peft_lightning import CausalLMModule, LoRA, SFTDataModule, UserError
from peft_lightning.kernels.attention import FLAT_ATTENTION
from tiny import ARCHITECTURES, tiny_model
from tiny_run import byte_tokenizer, write_base

FOLDER = Path(__file__).parents[1] / "examples" / "elsewhere"
EXAMPLES = sorted(file.stem for file in FOLDER.glob("*.py"))
SAVED = {  # where each writes the adapter
    "hf_trainer": "out/adapter",
    "own_loader": "out/checkpoints/last.ckpt",
    "trl_sft": "out/adapter",
}
LOADS = {"hf_trainer": "out/checkpoint-5", "trl_sft": "out/checkpoint-5"}


def run(example: str, where: Path, base: Path, rows: Path) -> str:
    if importlib.util.find_spec("trl") is None and example == "trl_sft":
        pytest.skip("trl is not installed")
    environment = {
        "PYTHONPATH": str(FOLDER.parents[1]),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "disabled",
    }
    environment |= {"XDG_CACHE_HOME": str(where), "COMET_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    args = [str(FOLDER / f"{example}.py"), str(base), str(rows), "out"]
    done = warm_python.run(args, cwd=where, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_trains_an_adapter_that_hf_peft_reads(example, tmp_path, base, rows):
    run(example, tmp_path, base, rows)
    folder = tmp_path / SAVED.get(example, "out")
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in tensors)
    changed = [t for n, t in tensors.items() if "lora_B" in n and t.abs().max() > 0]
    assert len(changed) == 14  # each linear layer of two decoder layers
    ids = torch.arange(4, 20)[None]
    plain = AutoModelForCausalLM.from_pretrained(base)
    before = plain(ids).logits
    theirs = PeftModel.from_pretrained(plain, folder)
    assert not torch.equal(theirs(ids).logits, before)


@pytest.mark.parametrize("example", LOADS)
def test_a_checkpoint_of_hfs_trainers_holds_the_adapter_alone(example, tmp_path, base, rows):
    run(example, tmp_path, base, rows)
    folder = tmp_path / LOADS[example]
    names = {file.name for file in folder.iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json"} <= names
    assert not [n for n in names if n.startswith(("model", "pytorch_model"))]
    ours, last = (
        load_file(where / "adapter_model.safetensors")
        for where in (folder, tmp_path / SAVED[example])
    )
    assert all(torch.equal(ours[name], last[name]) for name in last)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_has_at_most_30_lines(example):
    lines = (FOLDER / f"{example}.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30


def test_fabric_and_a_plain_loop_compute_the_same_first_loss(tmp_path, base, rows):
    losses = [
        float(re.search(r"loss ([\d.]+)", run(example, tmp_path, base, rows))[1])
        for example in ("plain_loop", "fabric")  # an update of LoRA starts at zero
    ]
    assert losses[0] == losses[1]


# ---- losses of padded batches -----------------------------------------------------------------


def padded(side: str) -> dict[str, torch.Tensor]:
    """Three rows of 11, 6 and 3 tokens; of the first the first four are not in the loss."""
    ids = torch.randint(4, 200, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(ids)
    for row, length in enumerate((11, 6, 3)):
        mask[row, slice(11 - length, 11) if side == "left" else slice(0, length)] = 1
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, :4] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_a_padded_batch_is_that_of_the_models_own_forward(architecture, side, tmp_path):
    base = write_base(tmp_path / "base", architecture, torch.float64)
    adapter = LoRA(r=2, init_lora_weights=False)
    module = CausalLMModule(str(base), adapter)
    module.configure_model()
    assert module.model.config._attn_implementation == FLAT_ATTENTION
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter.attach(model)
    adapter.load_state_dict(model, module.adapter.state_dict(module.model))
    module.double()
    model.double()
    batch = padded(side)
    nll, tokens = module.nll(dict(batch))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, targets = model(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    expected = F.cross_entropy(logits.transpose(1, 2), targets, reduction="sum")
    assert tokens == (targets != -100).sum()
    is_float64 = architecture in ("gpt2", "opt", "gpt_neox")  # others' norms compute in float32
    tolerance = 1e-10 if is_float64 else 1e-5
    assert nll.item() == pytest.approx(expected.item(), rel=tolerance)
    hf = model(**batch).loss  # of logits in float32
    assert (nll / tokens).item() == pytest.approx(hf.item(), rel=1e-5)
    nll.backward()
    expected.backward()
    ours = [p.grad for p in module.trainable_parameters()]
    theirs = [p.grad for p in model.parameters() if p.requires_grad]
    allowed = 1e-9 if is_float64 else 1e-3  # of gradients through float32 norms
    scale = max(grad.abs().max().item() for grad in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=scale * allowed)


def test_a_mask_of_four_dimensions_is_taken_as_it_is(tmp_path):
    base = write_base(tmp_path / "base", "gpt2", torch.float64)
    module = CausalLMModule(str(base), LoRA(r=2))
    module.configure_model()
    module.double()
    batch = padded("right")
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    four = causal & batch["attention_mask"].bool()[:, None, None, :]
    positions = torch.arange(11).expand(3, 11)
    expected, _ = module.nll({**batch, "position_ids": positions})
    ours, _ = module.nll({**batch, "attention_mask": four, "position_ids": positions})
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_batch_of_a_collator_of_hf_is_taken_as_it_is(tmp_path, base):
    module = CausalLMModule(str(base), LoRA(r=2))
    module.configure_model()
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]},
        {"input_ids": [9, 10], "labels": [9, 10]},
    ]
    _, tokens = module.nll(DataCollatorForSeq2Seq(byte_tokenizer())(rows))
    assert tokens == 4


def test_a_batch_without_labels_is_named(base):
    module = CausalLMModule(str(base), LoRA(r=2))
    module.configure_model()
    with pytest.raises(
        UserError, match="no labels, only input_ids, attention_mask: the loss needs"
    ):
        module.nll({"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 4)})


# ---- the data module elsewhere ----------------------------------------------------------------


class Foreign(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = tiny_model("llama", vocab_size=260)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit_foreign(module, rows, root, **data):
    datamodule = SFTDataModule(
        train=str(rows), tokenizer=byte_tokenizer(), cache_dir=str(root), **data
    )
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(max_steps=1, accelerator="cpu", default_root_dir=root, **options).fit(
        module, datamodule
    )


def test_a_module_that_would_mix_the_sequences_of_flat_batches_is_refused_them(tmp_path, rows):
    with pytest.raises(UserError, match=r"Foreign would get flat batches.*layout='padded'"):
        fit_foreign(Foreign(), rows, tmp_path)
    fit_foreign(Foreign(), rows, tmp_path, layout="padded")
    apart = type(
        "Apart", (Foreign,), {"takes_flat_batches": True, "training_step": lambda *_: None}
    )
    fit_foreign(apart(), rows, tmp_path)


EACH_RANK = """
import json, sys, torch
from peft_lightning import SFTDataModule
from tiny_run import byte_tokenizer

rank, folder, rows = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
)
data = SFTDataModule(train=rows, tokenizer=byte_tokenizer(), cache_dir=folder, val_fraction=0)
data.setup("fit")
parts = [b["input_ids"][0].split(b["seq_lens"]) for b in data.train_dataloader()]
seen = [row.tolist() for part in parts for row in part]
open(f"{folder}/{rank}.json", "w").write(json.dumps(seen))
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_without_a_trainer_each_process_gets_its_own_rows(tmp_path, rows):
    tests = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"}
    args = ["-c", EACH_RANK]
    ranks = [warm_python.start([*args, rank, tmp_path, rows], env=env) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    seen = [row for rank in (0, 1) for row in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert len(seen) == len({tuple(row) for row in seen}) == 24
