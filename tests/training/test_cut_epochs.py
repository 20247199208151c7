"""A run that ends within an epoch, for whatever reason, goes on with the rest of that epoch."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from peft_lightning import Constant
from tiny_run import fit

STEPS = 9  # of 6 an epoch


class Stop(Callback):
    """Ends a training after a step, as EarlyStopping does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


class Batches(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch["input_ids"].flatten().tolist())


def run(root, base, rows, validates, callbacks=(), **options):
    batches = Batches()
    fit(
        base,
        rows,
        root,
        callbacks=[batches, *callbacks],
        module={"lr_schedule": Constant()},  # another knows how many steps there will be
        data={"val": str(rows)} if validates else {"val_fraction": 0.0},
        **{"max_epochs": 4, **options},
    )
    last = root / "checkpoints/last.ckpt"
    return batches.seen, load_file(last / "adapter_model.safetensors"), str(last)


@pytest.mark.parametrize("validates", [False, True], ids=["no validation", "validation"])
@pytest.mark.parametrize("how", ["max_steps", "a callback"])
@pytest.mark.parametrize("step", [1, 2, 6, 8])
def test_what_ends_within_an_epoch_goes_on_with_the_rest_of_it(
    tmp_path, base, rows, validates, how, step
):
    ways = {
        "max_steps": {"max_steps": step},
        "a callback": {"callbacks": [Stop(step)], "max_steps": STEPS},
    }
    plain = {"base": base, "rows": rows, "validates": validates}
    batches, expected, _ = run(tmp_path / "whole", **plain, max_steps=STEPS)
    begun, _, last = run(tmp_path / "cut", **plain, **ways[how])
    assert len(begun) == step
    rest, found, _ = run(tmp_path / "cut", **plain, max_steps=STEPS, ckpt_path=last)
    assert begun + rest == batches
    assert all(torch.equal(found[name], expected[name]) for name in expected)
