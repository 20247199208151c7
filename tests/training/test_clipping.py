"""Gradients are clipped as torch defines it, by the norm that is logged."""

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from exactness import RATE, defined, sgd, train
from peft_lightning import CausalLMModule
from peft_lightning.training import clipping, loss_log
from peft_lightning.training.clipping import clip
from peft_lightning.training.schedules import Constant
from tiny_run import fit, write_base, write_rows

ROWS = 10
BIG, LITTLE = 0.3, 0.01
CUTS = {
    "a batch of 8": {"data": {"batch_size": 8}},
    "8 batches of 1": {"data": {"batch_size": 1}, "accumulate_grad_batches": 8},
    "2 padded batches of 4": {
        "data": {"batch_size": 4, "layout": "padded"},
        "accumulate_grad_batches": 2,
    },
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="module")
def ten_rows(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("ten") / "rows.jsonl", ROWS)


def norm_of(grads):
    return sum(float(g.double().square().sum()) for g in grads) ** 0.5


def by_norm(largest, norms=None):
    """Return the definition: gradients of a larger norm are shortened to it."""

    def clip(grads):
        norm = norm_of(grads)
        if norms is not None:
            norms.append(norm)
        return [g * min(1.0, largest / (norm + 1e-6)) for g in grads]

    return clip


def assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cut", CUTS)
def test_the_norm_of_a_whole_steps_gradient_is_clipped_however_its_rows_are_cut(
    cut, gpt2, ten_rows, tmp_path
):
    norms = []
    defined(gpt2, ten_rows, [8, 2], by_norm(float("inf"), norms))
    between = sum(norms) / 2
    assert min(norms) < between < max(norms)  # so that one step is clipped and one is not
    for largest in (between, LITTLE):
        options = {**CUTS[cut], "gradient_clip_val": largest}
        _, ours = train(gpt2, ten_rows, tmp_path / str(largest), **options)
        assert_same(ours, defined(gpt2, ten_rows, [8, 2], by_norm(largest)))


def test_values_are_clipped_where_that_is_asked_for(gpt2, ten_rows, tmp_path):
    options = {"gradient_clip_val": LITTLE, "gradient_clip_algorithm": "value"}
    options |= {"data": {"batch_size": 4}, "accumulate_grad_batches": 2}
    _, ours = train(gpt2, ten_rows, tmp_path / "run", **options)
    clip = lambda grads: [g.clamp(-LITTLE, LITTLE) for g in grads]  # noqa: E731
    assert_same(ours, defined(gpt2, ten_rows, [8, 2], clip))


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_null_and_0_are_no_clipping(off, gpt2, ten_rows, tmp_path):
    options = {"gradient_clip_val": off, "data": {"batch_size": 8}}
    _, ours = train(gpt2, ten_rows, tmp_path / "run", **options)
    assert_same(ours, defined(gpt2, ten_rows, [8, 2]))


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_norm_below_0_is_refused(wrong, gpt2, ten_rows, tmp_path):
    with pytest.raises(ValueError, match=r"gradient_clip_val must be .*0 or more, got (-1|nan)"):
        train(gpt2, ten_rows, tmp_path / "run", gradient_clip_val=wrong)


@pytest.mark.parametrize("largest", [0.5, 1e6, None])
@pytest.mark.parametrize("is_known", [True, False])
def test_clipped_gradients_are_those_of_torch_whether_their_norm_is_known_or_not(largest, is_known):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (5, 70)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    ours = [p.grad.clone() for p in parameters]
    optimizer = sgd([nn.Parameter(torch.zeros_like(grad)) for grad in ours])
    for p, grad in zip(optimizer.param_groups[0]["params"], ours, strict=True):
        p.grad = grad
    theirs = nn.utils.clip_grad_norm_(parameters, float("inf") if largest is None else largest)
    clip(optimizer, largest, "norm", theirs if is_known else None)
    for grad, p in zip(ours, parameters, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", [None, torch.tensor(float("nan"))])
def test_gradients_that_are_not_numbers_stay_so(norm):
    optimizer = sgd([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))])
    grads = [torch.tensor([1.0, float("nan")]), torch.tensor([2.0])]
    for p, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
        p.grad = grad
    clip(optimizer, 0.5, None, norm)
    assert all(g.isnan().all() for g in grads)  # as torch does: the loss's guard sees it next


@pytest.mark.parametrize(
    ("cls", "times"), [(CausalLMModule, 1), ("changed", 2)], ids=["ours", "an override"]
)
def test_the_norm_is_computed_again_only_if_the_gradients_may_have_changed(
    cls, times, gpt2, ten_rows, tmp_path, monkeypatch
):
    calls = []
    for room in (loss_log, clipping):
        computed = room.total_norm
        monkeypatch.setattr(room, "total_norm", lambda g, f=computed: (calls.append(g), f(g))[1])
    options = {"data": {"batch_size": 8}, "gradient_clip_val": LITTLE, "max_steps": 1}
    options["module_class"] = Changed if cls == "changed" else cls
    train(gpt2, ten_rows, tmp_path / "run", **options)
    assert len(calls) == times


def test_the_logged_norm_is_that_before_clipping(gpt2, ten_rows, tmp_path):
    norms = []
    defined(gpt2, ten_rows, [8], by_norm(LITTLE, norms))
    options = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 1, "max_steps": 1}
    options |= {"data": {"batch_size": 8}, "gradient_clip_val": LITTLE}
    trainer, _ = train(gpt2, ten_rows, tmp_path / "run", **options)
    assert trainer.logged_metrics["grad_norm"].item() == pytest.approx(norms[0], rel=1e-5)


# ---- what a subclass does wins ----------------------------------------------------------------


class Halved(CausalLMModule):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        for p in self.trainable_parameters():
            p.grad /= 2


class Lightnings(CausalLMModule):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        self.clip_gradients(
            optimizer,
            gradient_clip_val=gradient_clip_val,
            gradient_clip_algorithm=gradient_clip_algorithm,
        )


class Ours(CausalLMModule):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val, gradient_clip_algorithm):
        super().configure_gradient_clipping(optimizer, LITTLE, "norm")


class Changed(CausalLMModule):
    def on_before_optimizer_step(self, optimizer):
        self.before = norm_of([p.grad for p in self.trainable_parameters()])
        for p in self.trainable_parameters():
            p.grad += 1


def halve(grads):
    return [g / 2 for g in grads]


def add_one(grads):
    return by_norm(BIG)([g + 1 for g in grads])


@pytest.mark.parametrize(
    ("cls", "clip"),
    [
        (Halved, halve),
        (Lightnings, by_norm(BIG)),
        (Ours, by_norm(LITTLE)),
        (Changed, add_one),
    ],
)
def test_an_override_wins(cls, clip, gpt2, ten_rows, tmp_path):
    options = {"data": {"batch_size": 8}, "gradient_clip_val": BIG, "module_class": cls}
    _, ours = train(gpt2, ten_rows, tmp_path / "run", **options)
    assert_same(ours, defined(gpt2, ten_rows, [8, 2], clip))


def test_a_hook_before_the_step_sees_gradients_that_are_not_clipped_yet(gpt2, ten_rows, tmp_path):
    norms = []
    defined(gpt2, ten_rows, [8], by_norm(LITTLE, norms))
    options = {"data": {"batch_size": 8}, "gradient_clip_val": LITTLE, "max_steps": 1}
    trainer, _ = train(gpt2, ten_rows, tmp_path / "run", module_class=Changed, **options)
    assert trainer.lightning_module.before == pytest.approx(norms[0], rel=1e-9)


# ---- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "fused"), [(CausalLMModule, True), (Changed, True), (Lightnings, False)]
)
def test_the_default_optimizer_stays_fused_with_clipping_in_mixed_precision(
    cls, fused, base, rows, tmp_path
):
    options = {"precision": "bf16-mixed", "gradient_clip_val": LITTLE, "max_steps": 1}
    trainer = fit(base, rows, tmp_path / "run", module_class=cls, **options)
    assert bool(trainer.optimizers[0].param_groups[0]["fused"]) == fused


def fused_sgd(parameters):
    return torch.optim.SGD(parameters, lr=RATE, fused=True)


def test_a_fused_optimizer_of_the_users_own_is_clipped_in_mixed_precision(base, rows, tmp_path):
    moved = update(base, rows, tmp_path, fused_sgd, precision="bf16-mixed")
    assert norm_of(moved) == pytest.approx(RATE * LITTLE, rel=1e-3)


def test_a_loss_scale_is_taken_off_before_clipping(base, rows, tmp_path):
    moved = update(base, rows, tmp_path, sgd, plugins=[MixedPrecision("16-mixed", "cpu")])
    assert norm_of(moved) == pytest.approx(RATE * LITTLE, rel=1e-3)


def test_a_fused_optimizer_with_a_loss_scale_is_refused(base, rows, tmp_path):
    with pytest.raises(ValueError, match=r"fused optimizer .* gradient_clip_val in precision 16-m"):
        update(base, rows, tmp_path, fused_sgd, plugins=[MixedPrecision("16-mixed", "cpu")])


def update(base, rows, root, optimizer, **options):
    """Return by how much one clipped step of SGD moves each tensor."""
    module = {"optimizer": optimizer, "lr_schedule": Constant()}
    options |= {"gradient_clip_val": LITTLE, "seed": 3}
    before = fit(base, rows, root / "0", module=module, **{**options, "max_steps": 0})
    after = fit(base, rows, root / "1", module=module, **{**options, "max_steps": 1})
    old, new = (t.lightning_module.state_dict() for t in (before, after))
    assert old.keys() == new.keys()
    return [new[name] - old[name] for name in old]
