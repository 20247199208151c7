"""A module from a checkpoint is as it was configured, with the arguments that Lightning has."""

import functools
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file

from cli_driver import drive
from peft_lightning import CausalLMModule, Constant, Full, Linear, LoRA, PromptTuning
from peft_lightning.training.construct import arguments_from
from rounding import assert_near
from test_hyperparameters import RICH, SECRET, Experiment, Head, Side, halved
from tiny_run import fit, write_base

IDS = torch.tensor([[5, 6, 7, 8, 9]])
ADAPTER = LoRA(r=2, lora_alpha=7, lora_dropout=0.25, target_modules=["q_proj", "v_proj"])
CONFIGURED = {
    "learning_rate": 0.02,
    "lr_schedule": Linear(2, 0.5),
    "optimizer": functools.partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    "sample_max_new_tokens": 5,
    **RICH,
}


def last(root):
    return root / "checkpoints" / "last.ckpt"


def logits(module):
    with torch.no_grad():
        return module.model(IDS).logits


@pytest.fixture(scope="module")
def ran(tmp_path_factory, base, rows):
    """The trainer and the last checkpoint of a run with every option configured."""
    root = tmp_path_factory.mktemp("load") / "run"
    options = {"adapter": ADAPTER, "module": CONFIGURED, "module_class": Experiment}
    trainer = fit(base, rows, root, max_steps=3, logger=CSVLogger(root), **options)
    trainer.lightning_module.model.eval()
    return trainer, last(root)


@pytest.fixture
def copied(ran, tmp_path):
    """A copy of the checkpoint without its checksums, to be changed."""
    folder = shutil.copytree(ran[1], tmp_path / "copied")
    (folder / "SHA256SUMS").unlink()
    return folder


def test_what_was_configured_is_restored(ran):
    trainer, checkpoint = ran
    module = Experiment.load_from_checkpoint(checkpoint)
    assert isinstance(module, Experiment)
    assert module.learning_rate == 0.02
    assert module.lr_schedule == Linear(2, 0.5)
    assert module.optimizer.func is torch.optim.SGD
    assert module.optimizer.keywords == {"lr": 0.02, "momentum": 0.9}
    assert module.sample_max_new_tokens == 5
    assert module.alpha == 0.7
    assert module.side is Side.RIGHT
    assert module.folder == Path("some/where")
    assert module.head == Head(8)
    assert module.change is halved
    assert (module.adapter.lora_alpha, module.adapter.lora_dropout) == (7, 0.25)
    assert dict(module.hparams) == dict(trainer.lightning_module.hparams)
    assert torch.equal(logits(module.eval()), logits(trainer.lightning_module))


def test_what_is_given_wins(ran):
    trainer, checkpoint = ran
    module = Experiment.load_from_checkpoint(
        checkpoint, learning_rate=0.5, lr_schedule=Constant(), head=None, alpha=0.1
    )
    assert (module.learning_rate, module.lr_schedule, module.alpha) == (0.5, Constant(), 0.1)
    assert module.head is None
    assert module.side is Side.RIGHT
    assert module.hparams.learning_rate == 0.5
    assert torch.equal(logits(module.eval()), logits(trainer.lightning_module))


def test_training_goes_on_with_the_loaded_module(ran, base, rows, tmp_path):
    _, checkpoint = ran
    options = {"adapter": ADAPTER, "module": CONFIGURED, "module_class": Experiment}
    whole = fit(base, rows, tmp_path / "whole", max_steps=5, ckpt_path=str(checkpoint), **options)
    module = Experiment.load_from_checkpoint(checkpoint)

    def loaded(*args, **kwargs):
        return module

    loaded = fit(
        *(base, rows, tmp_path / "loaded"),
        max_steps=5,
        ckpt_path=str(checkpoint),
        module_class=loaded,
    )
    ours, wanted = (t.lightning_module.state_dict() for t in (loaded, whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in wanted.items())
    again = Experiment.load_from_checkpoint(last(tmp_path / "loaded"))
    assert again.lr_schedule == Linear(2, 0.5)
    assert again.hparams["init_from"] is None


@pytest.mark.parametrize(
    "adapter",
    [PromptTuning(2), LoRA(r=2, init_lora_weights="pissa"), LoRA(r=1, new_tokens=["<a>"])],
)
def test_any_adapter_is_loaded(adapter, base, rows, tmp_path):
    trainer = fit(base, rows, tmp_path / "run", adapter=adapter, max_steps=2)
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "run")).eval()
    trained = trainer.lightning_module.eval()
    assert torch.equal(trained.nll(batch())[0], module.nll(batch())[0])
    assert module.hparams["adapter"]["init_args"] == trained.hparams["adapter"]["init_args"]


def batch():
    from tiny_run import flat_batch

    return flat_batch([9, 7])


def test_full_fine_tuning_is_loaded(base, rows, tmp_path):
    trainer = fit(base, rows, tmp_path / "run", adapter=Full(), max_steps=2)
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "run")).eval()
    assert torch.equal(logits(module), logits(trainer.lightning_module.eval()))
    assert module.learning_rate == 1e-2


def test_a_run_from_another_adapter_is_loaded_without_that_one(base, rows, lora_folder, tmp_path):
    start = shutil.copytree(lora_folder, tmp_path / "start")
    fit(base, rows, tmp_path / "run", module={"init_from": str(start)}, max_steps=1)
    shutil.rmtree(start)
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "run"))
    assert module.hparams["init_from"] == str(start)
    assert module.learning_rate == 1e-2


def test_an_adapters_folder_without_a_trainers_state_is_loaded_with_the_defaults(lora_folder):
    module = CausalLMModule.load_from_checkpoint(lora_folder, map_location="cpu")
    assert module.learning_rate == LoRA.learning_rate
    assert module.adapter.r == 2


def test_a_base_that_has_moved_is_given(base, rows, tmp_path):
    own = shutil.copytree(base, tmp_path / "own")
    fit(own, rows, tmp_path / "run", max_steps=1)
    own.rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "run"), base_model=moved)
    assert module.base_model_name == module.hparams.base_model == moved
    other = write_base(tmp_path / "other", "gpt2")
    with pytest.raises(ValueError, match="was trained on another base model"):
        CausalLMModule.load_from_checkpoint(last(tmp_path / "run"), base_model=str(other))


@pytest.mark.parametrize(
    "place",
    [
        "meta",
        torch.device("meta"),
        {"cpu": "meta"},
        lambda s, _: torch.UntypedStorage(4, device="meta"),
    ],
)
def test_map_location_is_where_the_module_is(ran, place):
    module = Experiment.load_from_checkpoint(ran[1], map_location=place)
    assert {p.device.type for p in module.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "place", [None, "cpu", {"cuda:0": "cpu"}, lambda storage, location: storage]
)
def test_map_location_of_the_cpu_is_the_cpu(ran, place):
    module = Experiment.load_from_checkpoint(ran[1], place)
    assert {p.device.type for p in module.parameters()} == {"cpu"}


def test_hparams_file_is_a_loggers_or_ones_own(ran, tmp_path):
    trainer, checkpoint = ran
    logged = Path(trainer.logger.log_dir) / "hparams.yaml"
    module = Experiment.load_from_checkpoint(checkpoint, hparams_file=logged)
    assert (module.alpha, module.side, module.head) == (0.7, Side.RIGHT, Head(8))
    assert module.lr_schedule == Linear(2, 0.5)
    assert module.optimizer.func is torch.optim.SGD
    own = tmp_path / "own.yaml"
    own.write_text("alpha: 1e-1\nside: LEFT\nlearning_rate: 3e-3\n")
    module = Experiment.load_from_checkpoint(checkpoint, hparams_file=str(own), side=Side.RIGHT)
    assert (module.alpha, module.side, module.learning_rate) == (0.1, Side.RIGHT, 3e-3)
    assert module.lr_schedule == CausalLMModule(str(own)).lr_schedule  # which the file has not
    (tmp_path / "own.csv").write_text("key,value\nalpha,0.3\n")
    module = Experiment.load_from_checkpoint(checkpoint, hparams_file=tmp_path / "own.csv")
    assert module.alpha == 0.3
    for name, words in (("no.yaml", "there is no file"), ("own.txt", "must be a .yaml")):
        with pytest.raises(ValueError, match=words):
            Experiment.load_from_checkpoint(checkpoint, hparams_file=name)


def test_strict_is_the_default_and_false_loads_what_there_is(ran, copied):
    file = copied / "adapter_model.safetensors"
    tensors = load_file(file)
    left_out = min(tensors)
    tensors["foreign"] = tensors.pop(left_out)
    save_file(tensors, file, metadata={"format": "pt"})
    for strict in ({}, {"strict": True}):
        with pytest.raises(ValueError, match=r"missing|unexpected"):
            Experiment.load_from_checkpoint(copied, **strict)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = Experiment.load_from_checkpoint(copied, strict=False)
    said = [str(w.message) for w in caught]
    assert any(f"1 tensors are missing: {left_out}" in text for text in said)
    assert any("1 tensors are unexpected: foreign" in text for text in said)
    loaded = module.state_dict()
    assert all(torch.equal(loaded[n], t) for n, t in tensors.items() if n != "foreign")


def test_an_adapter_with_another_dropout_is_taken_and_one_of_another_rank_is_not(ran):
    other = LoRA(r=2, lora_alpha=7, lora_dropout=0.5, target_modules=["q_proj", "v_proj"])
    module = Experiment.load_from_checkpoint(ran[1], adapter=other)
    assert module.adapter.lora_dropout == 0.5
    assert torch.equal(logits(module.eval()), logits(ran[0].lightning_module))
    with pytest.raises(ValueError, match="r: 2 in the checkpoint, 3 configured"):
        Experiment.load_from_checkpoint(ran[1], adapter=LoRA(r=3))


def test_more_targets_are_loaded_in_part_if_that_is_asked(ran):
    wider = LoRA(r=2, lora_alpha=7, target_modules=["q_proj", "v_proj", "k_proj"])
    with pytest.warns(UserWarning, match="4 tensors are missing"):
        module = Experiment.load_from_checkpoint(ran[1], adapter=wider, strict=False).eval()
    assert_near(logits(module), logits(ran[0].lightning_module))  # B of the others is zero


def test_a_value_that_is_not_saved_is_asked_for(base, rows, tmp_path):
    options = {"change": lambda x: x, "api_key": SECRET}
    fit(base, rows, tmp_path / "run", module=options, module_class=Experiment, max_steps=1)
    load = functools.partial(Experiment.load_from_checkpoint, last(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"change is not saved, it was .*lambda.*: give change"):
        load(api_key=None)
    with pytest.raises(ValueError, match="api_key is not saved, it was a secret: give api_key"):
        load(change=None)
    assert load(change=abs, api_key="mine").change is abs


class Fixes(CausalLMModule):
    """Decides itself what its base class is given."""

    def __init__(self, base_model: str, width: int = 1, **kwargs):
        super().__init__(base_model, ADAPTER, learning_rate=width / 100, **kwargs)


class FixesAll(CausalLMModule):
    """Takes none of the options of its base class."""

    def __init__(self, base_model: str, width: int = 1):
        super().__init__(base_model, ADAPTER, width / 100)


def test_what_a_subclass_gives_its_base_itself_is_left_to_it(base, rows, tmp_path):
    class Keyword(Fixes):
        def __init__(self, base, adapter=None, learning_rate=None, **options):
            super().__init__(base, width=3, **options)

    class All(FixesAll):
        def __init__(self, base, adapter=None, learning_rate=None):
            super().__init__(base, width=3)

    for kind, saved in ((Fixes, Keyword), (FixesAll, All)):
        root = tmp_path / kind.__name__ / "run"
        trainer = fit(base, rows, root, max_steps=1, module_class=saved)
        module = kind.load_from_checkpoint(last(root)).eval()
        assert module.learning_rate == 0.03
        assert torch.equal(logits(module), logits(trainer.lightning_module.eval()))


def test_what_a_user_saves_in_a_hook_is_given_back_to_the_hook(base, rows, tmp_path):
    class Hooked(CausalLMModule):
        found = None

        def on_save_checkpoint(self, checkpoint):
            super().on_save_checkpoint(checkpoint)
            checkpoint["mine"] = {"path": Path("a")}

        def on_load_checkpoint(self, checkpoint):
            super().on_load_checkpoint(checkpoint)
            self.found = checkpoint["mine"]

    fit(base, rows, tmp_path / "run", max_steps=1, module_class=Hooked)
    assert Hooked.load_from_checkpoint(last(tmp_path / "run")).found == {"path": Path("a")}


def test_a_run_of_the_command_line_is_loaded(base, rows, tmp_path):
    (tmp_path / "rows.jsonl").write_text(rows.read_text())
    config = {
        "model": {
            "base_model": str(base),
            "adapter": {"class_path": "LoRA", "init_args": {"r": 3, "lora_alpha": 5}},
            "lr_schedule": {"class_path": "Constant", "init_args": {"warmup": 2}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.5}},
            "learning_rate": 0.25,
        },
        "data": {"train": "rows.jsonl", "cache_dir": "cache"},
        "trainer": {"accelerator": "cpu", "max_steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    [(status, _, errors)] = drive(tmp_path, [["fit", "--config", "run.yaml"]])
    assert status == 0, errors
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "runs/run"))
    assert (module.adapter.r, module.adapter.lora_alpha) == (3, 5)
    assert module.lr_schedule == Constant(2)
    [group] = module.optimizer(module.trainable_parameters()).param_groups
    assert (group["lr"], group["momentum"]) == (0.25, 0.5)
    by_hand = tmp_path / "runs/run/config.yaml"
    module = CausalLMModule.load_from_checkpoint(last(tmp_path / "runs/run"), hparams_file=by_hand)
    assert module.lr_schedule == Constant(2)


class Takes:
    """A class with arguments of every type that a file could abuse."""

    def __init__(
        self,
        schedule: Constant | None = None,
        change=None,
        call: functools.partial | None = None,
        **other,
    ):
        pass


def test_a_file_cannot_have_a_class_imported_or_called_that_the_argument_does_not_allow():
    popen = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "x"]}}
    system = {"change": {"import_path": "os.system"}}
    with pytest.raises(ValueError, match=r"change is os.system, which is not of .*: give change"):
        arguments_from(Takes, system, ())
    for saved in ({"schedule": popen}, {"change": popen}, {"call": popen}):
        with pytest.raises(ValueError, match=r"cannot be a subprocess.Popen: give"):
            arguments_from(Takes, saved, ())
    assert "antigravity" not in sys.modules
    unseen = {"class_path": "antigravity.Cls", "init_args": {}}
    with pytest.raises(ValueError, match=r"antigravity.Cls, which is not imported: import antig"):
        arguments_from(Takes, {"schedule": unseen}, ())
    assert "antigravity" not in sys.modules


def test_a_checkpoint_does_not_decide_that_code_of_its_base_runs(ran, copied):
    state = torch.load(copied / "trainer_state.pt", weights_only=True)
    state["hyper_parameters"]["trust_remote_code"] = True
    torch.save(state, copied / "trainer_state.pt")
    with pytest.raises(
        ValueError, match=r"a checkpoint cannot decide: give trust_remote_code=True"
    ):
        Experiment.load_from_checkpoint(copied)
    assert Experiment.load_from_checkpoint(copied, trust_remote_code=False).model is not None


def test_an_unknown_argument_or_a_file_is_an_error(ran, tmp_path):
    with pytest.raises(TypeError, match="no_such"):
        Experiment.load_from_checkpoint(ran[1], no_such=1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Experiment.load_from_checkpoint(tmp_path / "nowhere")
    with (tmp_path / "x").open("wb") as file, pytest.raises(ValueError, match="takes a folder"):
        Experiment.load_from_checkpoint(file)


class Headed(CausalLMModule):
    """Trains a part of its own beside the adapter."""

    def __init__(self, base_model: str, width: int = 1, **kwargs):
        super().__init__(base_model, **kwargs)
        self.head = torch.nn.Linear(width, 2)


def test_what_a_subclass_trains_beside_the_adapter_is_loaded(base, rows, tmp_path):
    def headed(base, adapter, **kwargs):
        return Headed(base, 3, adapter=adapter, **kwargs)

    trainer = fit(base, rows, tmp_path / "run", module_class=headed, max_steps=1)
    module = Headed.load_from_checkpoint(last(tmp_path / "run"))
    assert module.head.in_features == 3
    assert torch.equal(module.head.weight, trainer.lightning_module.head.weight)
