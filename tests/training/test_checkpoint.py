"""What a checkpoint holds, when it is written, and what wins when a run goes on from it."""

import json

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from cli_driver import saved_step
from peft_lightning import CausalLMModule, Full, LoRA, PromptTuning
from peft_lightning.training.checkpoint import AdapterCheckpoint
from peft_lightning.training.schedules import Constant
from rounding import assert_near
from tiny_run import CHECKPOINT_FILES, byte_tokenizer, fit, write_base, write_rows

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def run(tmp_path_factory, base, rows):
    """A run of two epochs, its folder."""
    root = tmp_path_factory.mktemp("checkpoints") / "run"
    return fit(base, rows, root, max_epochs=2), root


def last(root):
    return root / "checkpoints" / "last.ckpt"


def test_a_checkpoint_is_hf_pefts_files_our_facts_and_the_trainers_state(run):
    _, root = run
    for name in ("best.ckpt", "last.ckpt"):
        assert {p.name for p in (root / "checkpoints" / name).iterdir()} == CHECKPOINT_FILES
    assert {p.name for p in (root / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }


def test_nothing_of_the_base_is_in_it(run):
    trainer, root = run
    model = trainer.lightning_module.model
    trained = {tuple(p.shape) for p in model.parameters() if p.requires_grad}
    tensors = load_file(last(root) / "adapter_model.safetensors")
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    state = torch.load(last(root) / "trainer_state.pt", weights_only=True)
    assert "state_dict" not in state
    moments = [t for s in state["optimizer_states"][0]["state"].values() for t in s.values()]
    assert {tuple(t.shape) for t in moments if t.ndim} == trained


def test_hf_peft_loads_it_and_computes_our_logits(run, base):
    trainer, root = run
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), last(root))
    with torch.no_grad():
        expected = theirs.eval()(IDS).logits
        ours = trainer.lightning_module.model(IDS).logits
    assert_near(ours, expected)


def test_a_module_is_built_from_it(run):
    trainer, root = run
    again = CausalLMModule.load_from_checkpoint(last(root))
    with torch.no_grad():
        assert torch.equal(again.model(IDS).logits, trainer.lightning_module.model(IDS).logits)


def test_a_rank_16_checkpoint_of_smollm2s_shape_is_below_12_mb_with_the_optimizers_state(tmp_path):
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", 6)
    adapter = LoRA(r=16, target_modules=["q_proj", "v_proj"])
    fit(tmp_path / "base", rows, tmp_path / "run", adapter=adapter, max_steps=1)
    size = sum(file.stat().st_size for file in last(tmp_path / "run").iterdir())
    parameters = 30 * 16 * ((576 + 576) + (576 + 192))
    assert 3 * 4 * parameters < size < 12e6  # weights and two moments, in float32


def test_full_fine_tuning_writes_a_plain_model_folder(base, rows, tmp_path):
    trainer = fit(base, rows, tmp_path / "run", adapter=Full(), max_steps=2, max_epochs=-1)
    again = AutoModelForCausalLM.from_pretrained(last(tmp_path / "run"))
    with torch.no_grad():
        assert_near(again(IDS).logits, trainer.lightning_module.model(IDS).logits)


def test_best_is_the_validation_with_the_lowest_loss(base, rows, tmp_path):
    class Losses(Callback):
        def __init__(self):
            self.seen = {}

        def on_validation_end(self, trainer, module):
            self.seen[trainer.global_step] = trainer.callback_metrics["val/loss"].item()

    losses = Losses()
    fit(
        base,
        rows,
        tmp_path / "run",
        callbacks=[losses],
        max_epochs=4,
        module={"learning_rate": 3.0},
    )
    facts = json.loads((tmp_path / "run/checkpoints/best.ckpt/peft_lightning.json").read_text())
    assert len(losses.seen) == 4
    assert losses.seen[facts["step"]] == min(losses.seen.values())


def test_a_run_that_ends_within_an_epoch_is_validated_there(base, rows, tmp_path):
    fit(base, rows, tmp_path / "run", max_steps=2, max_epochs=-1)
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_dir()


def test_saves_are_between_optimizer_steps_only(base, rows, tmp_path):
    class Saves(Callback):
        def __init__(self):
            self.batches = []

        def on_save_checkpoint(self, trainer, module, checkpoint):
            self.batches.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    saves = Saves()
    every = AdapterCheckpoint(every_n_steps=1)
    fit(
        base,
        rows,
        tmp_path / "run",
        callbacks=[saves, every],
        max_epochs=1,
        accumulate_grad_batches=2,
        val_check_interval=3,
    )
    assert saves.batches
    assert set(saves.batches) <= {2, 4, 6}


def test_a_save_that_is_due_at_the_end_of_an_epoch_without_validation_is_made(base, rows, tmp_path):
    class Crash(Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.current_epoch == 1:
                raise RuntimeError("a crash")

    callbacks = [Crash(), AdapterCheckpoint(every_n_steps=6)]  # 24 rows in batches of 4
    with pytest.raises(RuntimeError, match="a crash"):
        fit(base, rows, tmp_path / "run", callbacks=callbacks, data={"val_fraction": 0})
    assert saved_step(last(tmp_path / "run")) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": LoRA(r=3)}, r"r: 2 in the checkpoint, 3 configured"),
        ({"adapter": LoRA(r=2, target_modules=["q_proj"])}, r"target_modules: .*q_proj"),
        ({"adapter": LoRA(r=2, lora_alpha=7)}, r"lora_alpha: 32 in the checkpoint, 7 configured"),
        ({"adapter": PromptTuning()}, r"peft_type: 'LORA' in the checkpoint, 'PROMPT_TUNING'"),
        ({"data": {"train_on": "all"}}, r"data"),
    ],
    ids=["rank", "targets", "alpha", "method", "data"],
)
def test_a_contradiction_to_the_checkpoint_is_an_error_that_names_both(
    run, base, rows, tmp_path, options, message
):
    _, root = run
    with pytest.raises(ValueError, match=message):
        fit(base, rows, tmp_path / "run", ckpt_path=str(last(root)), max_epochs=3, **options)


def test_another_base_model_is_an_error(run, rows, tmp_path):
    _, root = run
    other = write_base(tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    model.save_pretrained(other)
    with pytest.raises(ValueError, match="another base model"):
        fit(other, rows, tmp_path / "run", ckpt_path=str(last(root)), max_epochs=3)


def test_changed_rows_are_an_error_and_accepted_if_asked(run, base, tmp_path):
    _, root = run
    changed = write_rows(tmp_path / "rows.jsonl", seed=3)
    options = {"ckpt_path": str(last(root)), "max_epochs": 3}
    with pytest.raises(ValueError, match="data"):
        fit(base, changed, tmp_path / "run", **options)
    trainer = fit(base, changed, tmp_path / "run", data={"allow_changed_data": True}, **options)
    assert trainer.current_epoch == 3


@pytest.mark.parametrize(
    ("module", "value"),
    [
        ({"learning_rate": 5e-3}, lambda t, group: group["lr"] == 5e-3),
        (
            {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.25)},
            lambda t, group: (group["lr"], group["weight_decay"]) == (1e-3, 0.25),
        ),
    ],
    ids=["rate", "weight decay"],
)
def test_the_configuration_wins_over_what_the_checkpoint_remembers(
    run, base, rows, tmp_path, module, value
):
    _, root = run
    options = {"lr_schedule": Constant(), **module}
    trainer = fit(
        base, rows, tmp_path / "run", ckpt_path=str(last(root)), max_epochs=3, module=options
    )
    assert trainer.global_step == 18
    assert value(trainer, trainer.optimizers[0].param_groups[0])


def test_dropout_may_change(run, base, rows, tmp_path):
    _, root = run
    adapter = LoRA(r=2, lora_dropout=0.5)
    trainer = fit(
        base, rows, tmp_path / "run", adapter=adapter, ckpt_path=str(last(root)), max_epochs=3
    )
    layers = adapter.layers(trainer.lightning_module.model).values()
    assert {layer.dropout.p for layer in layers} == {0.5}


def test_a_run_goes_on_from_best(run, base, rows, tmp_path):
    _, root = run
    best = root / "checkpoints" / "best.ckpt"
    trainer = fit(base, rows, tmp_path / "run", ckpt_path=str(best), max_epochs=3)
    assert trainer.global_step == 18


def test_an_adapter_without_a_trainers_state_is_no_checkpoint_and_the_error_says_so(
    run, base, rows, tmp_path
):
    _, root = run
    for file in last(root).iterdir():
        if file.name != "trainer_state.pt":
            (tmp_path / "adapter").mkdir(exist_ok=True)
            (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.*trainer_state\.pt.*init_from"):
        fit(base, rows, tmp_path / "run", ckpt_path=str(tmp_path / "adapter"))
