"""Weights with optimizer options of their own: LoRA+ by its definition, resumed, and wrong ones."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from cli_driver import drive
from peft_lightning import CausalLMModule, Constant, LoRA, UserError
from tiny_run import fit

CONSTANT = ["--model.lr_schedule=Constant", "--model.lr_schedule.warmup=0"]
LORA_PLUS = {"lora_B.weight": {"lr_ratio": 4}}


class Noted(Callback):
    """Keeps each weight before the step, its gradient and its rate."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
        self.steps.append(
            {
                n: (p.detach().clone(), p.grad.clone(), rates[id(p)])
                for n, p in pl_module.named_parameters()
                if p.requires_grad
            }
        )


def trained(base, rows, folder, groups, **options):
    noted = Noted()
    module = {"parameter_groups": groups, "lr_schedule": Constant(), "dtype": "float32", **options}
    module["learning_rate"] = 0.01
    adapter = LoRA(r=2, init_lora_weights=False)
    run = {"adapter": adapter, "module": module, "callbacks": [noted], "gradient_clip_val": 0}
    return fit(base, rows, folder / "run", **run).lightning_module, noted.steps


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD, torch.optim.Adagrad])
def test_lora_plus_is_a_rate_of_its_own_for_b(base, rows, tmp_path, optimizer):
    options = {} if optimizer is None else {"optimizer": optimizer}
    module, steps = trained(base, rows, tmp_path, LORA_PLUS, **options)
    for name, (_, _, rate) in steps[0].items():
        assert rate == pytest.approx(0.04 if "lora_B" in name else 0.01)
    if optimizer is torch.optim.SGD:
        for name, (weight, gradient, rate) in steps[0].items():
            torch.testing.assert_close(steps[1][name][0], weight - rate * gradient)
    groups = module.optimizers().optimizer.param_groups
    assert [group.get("name") for group in groups] == [None, "lora_B.weight"]
    assert sum(len(group["params"]) for group in groups) == len(steps[0])


def test_the_first_pattern_counts_and_any_option_of_the_optimizer_may_be_given(
    base, rows, tmp_path
):
    groups = {
        "layers.1.self_attn.q_proj.lora_B.weight": {"lr": 0.5, "weight_decay": 0.25},
        r".*\.(lora_A|lora_B)\.weight": {"betas": [0.5, 0.75]},
    }
    module, steps = trained(base, rows, tmp_path, groups)
    first, second = module.optimizers().optimizer.param_groups
    assert (len(first["params"]), first["lr"], first["weight_decay"]) == (1, 0.5, 0.25)
    assert list(second["betas"]) == [0.5, 0.75]
    assert len(second["params"]) == len(steps[0]) - 1  # none is left without a pattern


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (
            {"lora_B.weight": {}},
            r"lora_B.weight: give options of the optimizer, such as \{lr_ratio",
        ),
        ({"lora_B.weight": {"lr_ratio": 0}}, "lr_ratio must be a number above 0, got 0"),
        ({"lora_B.weight": {"lr": "x"}}, "lr must be a number above 0, got 'x'"),
        ({"lora_B.weight": {"lr": 1.0, "lr_ratio": 2}}, "leave one out"),
    ],
)
def test_what_can_be_no_options_is_refused_at_once(base, groups, said):
    with pytest.raises(UserError, match=said):
        CausalLMModule(str(base), parameter_groups=groups)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"lora_b.weight": {"lr_ratio": 2}}, "matches nothing; did you mean lora_B.weight"),
        (
            {".*": {"lr_ratio": 2}, "lora_B.weight": {"lr_ratio": 3}},
            "an earlier pattern has all that it matches",
        ),
        ({"lora_B.weight": {"wait_decay": 2}}, "AdamW has no option 'wait_decay' .*weight_decay"),
    ],
)
def test_what_does_not_fit_the_weights_or_the_optimizer_is_named(
    base, rows, tmp_path, groups, said
):
    with pytest.raises(UserError, match=said):
        trained(base, rows, tmp_path, groups)


def test_a_run_with_groups_resumes_exactly_and_refuses_other_groups(base, rows, tmp_path):
    line = [
        *["fit", "--model.base_model", str(base), "--data.train", str(rows)],
        *["--model.adapter.r", "2", "--model.learning_rate", "0.01", "--trainer.accelerator=cpu"],
        *["--data.batch_size", "8", "--data.val_fraction", "0"],
    ]
    groups = ["--model.parameter_groups", "{lora_B.weight: {lr_ratio: 4}}"]
    ends = {"whole": ["--trainer.max_steps=4"], "part": ["--trainer.max_steps=2"]}
    for name, end in ends.items():
        root = ["--trainer.default_root_dir", name, *CONSTANT]
        ((status, _, errors),) = drive(tmp_path, [[*line, *groups, *root, *end]])
        assert status == 0, errors
    on = ["--trainer.default_root_dir", "part", *CONSTANT]
    on += ["--trainer.max_steps=4", "--ckpt_path", "last"]
    other, same = drive(tmp_path, [[*line, *on], [*line, *groups, *on]])
    assert other[0] == 2
    assert "give model.parameter_groups and model.optimizer of the run" in other[2]
    assert same[0] == 0, same[2]
    last = "checkpoints/last.ckpt/adapter_model.safetensors"
    ours, expected = (load_file(tmp_path / name / last) for name in ("part", "whole"))
    assert all(torch.equal(ours[key], expected[key]) for key in expected)
